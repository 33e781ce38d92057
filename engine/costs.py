"""What a forward of so many rows and a drafter pass take on this device, measured at start."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from drafter.plan import DraftPlan
from drafter.protocol import Drafter

from .planner import Costs
from .rows import ROW_CLASS, ROW_STEP, Rows
from .sampling import best_ids
from .target import Target

CONTEXT = 128  # committed tokens of the sequences that are timed
REPEATS = 4


@torch.inference_mode()
def measure_costs(
    target: Target,
    drafter: Drafter | None,
    plan: DraftPlan,
    num_slots: int,
    row_limit: int | None = None,
) -> Costs:
    """Time forwards of 16 rows up to those of a full batch, and the plan's passes.

    Uses the slots, so it must run before the first request.
    """
    context = min(CONTEXT, target.context_length // 2)
    full = num_slots * max(ROW_CLASS, plan.tree.num_nodes)
    most = min(row_limit or full, full)
    sizes = [ROW_CLASS]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    runs = {}
    for rows in sizes:
        batch = 1 << (min(num_slots, rows // ROW_STEP).bit_length() - 1)  # divides the rows
        runs[rows] = _forward(target, rows, batch, context)
    forward, draft = _milliseconds(runs), {}
    if drafter is not None:
        drafts = {b: _draft(target, drafter, plan, b, context) for b in sorted({1, num_slots})}
        draft = {b: whole / len(plan.passes) for b, whole in _milliseconds(drafts).items()}
    for slot in range(num_slots):
        target.scrub(slot)
        if drafter is not None:
            drafter.reset(slot)
    return Costs(forward, draft, row_limit)


def _forward(target: Target, rows: int, batch: int, context: int) -> Callable[[], None]:
    """A causal run of rows for each of `batch` sequences."""
    each = rows // batch
    offsets = torch.arange(each, device=target.device)
    visible = offsets[None, :] <= offsets[:, None]
    ids = torch.zeros(each * batch, dtype=torch.long, device=target.device)

    def run() -> None:
        description = Rows(
            range(batch),
            [context] * batch,
            offsets.expand(batch, -1),
            visible.expand(batch, -1, -1),
        )
        target.forward(ids, description).logits[0, 0].item()  # sync: ends the timing

    return run


def _draft(
    target: Target, drafter: Drafter, plan: DraftPlan, batch: int, context: int
) -> Callable[[], None]:
    """A whole draft, and feeding back two tokens."""
    slots = list(range(batch))
    roots = torch.zeros(batch, dtype=torch.long, device=target.device)
    tokens = torch.zeros(batch, 2, dtype=torch.long, device=target.device)
    features = torch.zeros(batch, 2, target.hidden_size, dtype=target.dtype, device=target.device)
    for slot in slots:
        drafter.reset(slot)
        drafter.prefill(slot, tokens[0, :1].repeat(context + 1), features[0, :1].repeat(context, 1))

    def run() -> None:
        drafter.draft(slots, roots, plan, rank_greedily)[0, 0].item()  # sync
        drafter.extend(slots, tokens, features, [2] * batch)

    return run


def rank_greedily(logits: Tensor, depth: int, width: int) -> Tensor:
    return best_ids(logits, width)


def _milliseconds(runs: Mapping[int, Callable[[], None]]) -> dict[int, float]:
    """The best of a few rounds after one that is not counted: what disturbs can only add."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(1 + REPEATS):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if number > 0:
                best[key] = min(best[key], 1e3 * (time.perf_counter() - start))
    return best
