"""What each running request does in the next step: what is drafted for it, and in whose company.

A group shares one forward. Requests that do not speculate are a group of their own, and where a
row's bits must not depend on how many run with it, groups are as small as that takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items

import torch

from drafter.plan import DraftPlan, build_plan
from tree.topology import ROOT_ONLY

from .config import NGrams
from .messages import PlainReason
from .planner import Planner
from .prediction import predict
from .rows import ROW_STEP, round_up
from .sequence import Sequence
from .speculative import SpeculativeDecoder


class Policy:
    """Without a `planner` every step drafts the decoder's whole plan.

    `row_limit` bounds the rows of a forward. `predicts` is whether clients' predictions are used;
    with `ngrams` requests are looked up in their own text as well. `drafts` tells whether the last
    choice was to draft trees.
    """

    def __init__(
        self,
        device: torch.device,
        planner: Planner | None,
        row_limit: int | None,
        predicts: bool,
        ngrams: NGrams | None,
    ) -> None:
        self.planner = planner
        self.row_limit = row_limit
        self.predicts = predicts
        self.ngrams = ngrams
        self.plain = build_plan(ROOT_ONLY, 1, device)
        self.drafts = True

    def groups(
        self, running: Items[Sequence], decoder: SpeculativeDecoder
    ) -> Iterable[tuple[DraftPlan, list[Sequence]]]:
        """The requests in batches that share a forward, each with its plan."""
        ordered = sorted(running, key=lambda sequence: sequence.slot)
        drafting = [s for s in ordered if s.speculates]
        plain = [s for s in ordered if not s.speculates]
        chosen = self._plan(len(drafting), decoder) if drafting else self.plain
        self.drafts = bool(chosen.passes) or not drafting
        if self.predicts:
            predict(drafting, chosen, self.planner, decoder.max_rows, self.ngrams)
        for plan, members in ((chosen, drafting), (self.plain, plain)):
            size = self._together(plan, members) or len(members)
            for first in range(0, len(members), max(1, size)):
                yield plan, members[first : first + size]

    def why_plain(self, sequence: Sequence, has_drafter: bool) -> PlainReason:
        """Why nothing is drafted for a request that decodes."""
        if not (has_drafter or self.ngrams):
            return "no_drafter"
        if not sequence.request.speculative:
            return "request"
        if not sequence.speculates:
            return "fault"
        return "load" if has_drafter else "no_match"

    def _plan(self, batch: int, decoder: SpeculativeDecoder) -> DraftPlan:
        if decoder.drafter is None:
            return self.plain
        return decoder.plan if self.planner is None else self.planner.choose(batch)

    def _together(self, plan: DraftPlan, members: Items[Sequence]) -> int | None:
        """How many requests may share a forward; None for any number."""
        if self.row_limit is None:
            return None
        needed = max(
            (s.rows_needed(plan.num_beside(len(s.provisional))) for s in members), default=1
        )
        return max(1, self.row_limit // round_up(needed, ROW_STEP))


def plan_name(sequence: Sequence, plan: DraftPlan) -> str:
    """What is drafted for a request, in a word."""
    if sequence.stretch:
        return "predicted" if sequence.stretch_source == "predicted" else "lookup"
    nodes = f"{plan.num_verified - 1}x{len(plan.passes)}"
    return nodes if plan.dynamic is None else f"dynamic {nodes}"
