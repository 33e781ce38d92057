"""What a forward of so many rows and a drafter pass take on this device, measured at start."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from drafter.naming import Naming
from drafter.plan import DraftPlan, build_plan
from drafter.protocol import Drafter, Watcher
from tree.topology import Tree

from .planner import Costs
from .rows import ROW_CLASS, ROW_STEP, Rows
from .sampling import best_ids
from .target import Target

CONTEXT = 128  # committed tokens of the sequences that are timed
REPEATS = 4
FED_BACK = 2  # tokens after each draft

Key = TypeVar("Key", int, str)


@torch.inference_mode()
def measure_costs(
    target: Target,
    drafter: Drafter | None,
    plans: Sequence[DraftPlan],
    num_slots: int,
    row_limit: int | None = None,
    repeats: int = REPEATS,
    longest: int = 0,
) -> Costs:
    """Time forwards of the fewest rows up to those of a full batch, and of `longest` rows of one
    sequence; and drafts up to those of the largest plan.

    The best of the repeats counts. Uses the slots, so it must run before the first request.
    """
    context = min(CONTEXT, target.context_length // 2)
    plan = max(plans, key=lambda plan: plan.num_rows)
    fewest = target.fewest_rows
    full = max(num_slots * max(fewest, *(own.num_verified for own in plans)), longest)
    most = min(row_limit or full, full)
    runs = {}
    for rows in row_counts(fewest, most):
        batch = 1 << (min(num_slots, rows // ROW_STEP).bit_length() - 1)  # divides the rows
        runs[rows] = _forward(target, rows, batch, context)
    forward = _milliseconds(runs, repeats)
    drafts = {}
    if drafter is not None and plan.passes:
        drafts = {
            batch: _draft_costs(_drafts(target, drafter, plan, batch, context), plan, repeats)
            for batch in sorted({1, min(2, num_slots), num_slots})  # one row may have its own way
        }
    for slot in range(num_slots):
        target.scrub(slot)
        if drafter is not None:
            drafter.reset(slot)
    return Costs(
        forward=forward,
        first={batch: own.first for batch, own in drafts.items()},
        later={batch: own.later for batch, own in drafts.items()},
        block={batch: own.block for batch, own in drafts.items()},
        row_limit=row_limit,
        fewest_rows=fewest,
    )


def row_counts(fewest: int, most: int) -> list[int]:
    """Rows whose forward is timed, from `fewest` until `most` are reached: 16, 20, 24, 28, 32, 48,
    64, 96, ...
    """
    counts = list(range(fewest, 2 * ROW_CLASS, ROW_STEP))
    size = 2 * ROW_CLASS
    while counts[-1] < most:
        counts += [size, size + size // 2]
        size *= 2
    return counts[: 1 + bisect_left(counts, most)]


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


@dataclass(frozen=True, slots=True)
class _DraftCosts:
    """Milliseconds of the first pass and the feed-back, of each other pass, of each more block."""

    first: float
    later: float
    block: float


def _drafts(
    target: Target, drafter: Drafter, plan: DraftPlan, batch: int, context: int
) -> dict[str, Callable[[], None]]:
    """Three drafts: one pass, all passes with one block each, and the whole plan.

    A drafter with a tree of its own drafts that alone.
    """
    if isinstance(drafter, Watcher):
        own = _draft(target, drafter, plan, batch, context)
        return {"first": own, "chain": own, "whole": own}
    size, depth = drafter.block_size, plan.tree.max_depth
    trees = {
        "first": Tree.from_paths((0,) * level for level in range(1, min(size, depth) + 1)),
        "chain": Tree.from_paths((0,) * level for level in range(1, depth + 1)),
        "whole": plan.tree,
    }
    return {
        name: _draft(target, drafter, build_plan(tree, size, target.device), batch, context)
        for name, tree in trees.items()
    }


def _draft_costs(
    drafts: Mapping[str, Callable[[], None]], plan: DraftPlan, repeats: int
) -> _DraftCosts:
    ms = _milliseconds(drafts, repeats)
    passes, blocks = len(plan.blocks) - 1, sum(plan.blocks) - len(plan.blocks)
    return _DraftCosts(
        first=ms["first"],
        later=max(0.0, ms["chain"] - ms["first"]) / max(1, passes),
        block=max(0.0, ms["whole"] - ms["chain"]) / max(1, blocks),
    )


def _draft(
    target: Target, drafter: Drafter, plan: DraftPlan, batch: int, context: int
) -> Callable[[], None]:
    """A whole draft, and feeding a few tokens back."""
    slots = list(range(batch))
    roots = torch.zeros(batch, dtype=torch.long, device=target.device)
    tokens = torch.zeros(batch, FED_BACK, dtype=torch.long, device=target.device)
    features = torch.zeros(
        batch, FED_BACK, target.hidden_size, dtype=target.dtype, device=target.device
    )

    def begin() -> None:
        for slot in slots:
            drafter.reset(slot)
            known = tokens[0, :1].repeat(context + 1)
            drafter.prefill(slot, known, features[0, :1].repeat(context, 1))

    begin()
    drafted = [0] * plan.tree.num_nodes  # before; the chain comes first

    def guess(path: Sequence[int], limit: int) -> list[int]:
        """About as good as `Guesses` are: one token right, and then none."""
        follows = drafted[len(path) + 1 : len(path) + 1 + limit]
        return follows[:1] + [int(token == 0) for token in follows[1:]]

    def run() -> None:
        if drafter.lengths[0] >= 2 * context:
            begin()  # one round is slow then, and another one counts
        own = guess if drafter.takes_guesses and batch == 1 else None
        drafted[:] = drafter.draft(slots, roots, plan, rank_greedily, guess=own)[0].tolist()  # sync
        drafter.extend(slots, tokens, features, [FED_BACK] * batch)

    return run


def rank_greedily(logits: Tensor, naming: Naming) -> Tensor:
    return best_ids(logits, naming.width)


def _milliseconds(runs: Mapping[Key, Callable[[], None]], repeats: int) -> dict[Key, float]:
    """The best of so many rounds after one that is not counted: what disturbs can only add."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(1 + repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if number > 0:
                best[key] = min(best[key], 1e3 * (time.perf_counter() - start))
    return best
