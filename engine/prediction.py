"""Predicted outputs: who verifies a stretch of the client's guess in place of a drafted tree.

A stretch is a chain: its rows have plain decoding's bits, and it takes no pass of the drafter. How
long stretches may be is chosen for all requests of a forward together, by tokens per second; none
at all is one of the choices. Each request takes its own where it promises more for its time than
the plan does.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from drafter.plan import DraftPlan
from tree.topology import ROOT_ONLY

from .lookup import Lookup, Proposal
from .planner import Planner
from .rows import ROW_CLASS, rows_each
from .sequence import Sequence

CHAIN_ROWS = (8, 16, 32, 64)  # rows of a request that are tried, where as many may be


def predict(
    sequences: Items[Sequence], plan: DraftPlan, planner: Planner | None, max_rows: int
) -> None:
    """Choose the predicted tokens that each sequence verifies next; who has none drafts `plan`.

    Without a planner there are no times to go by: stretches fill one class of rows, and have to
    promise half of what the plan could bring at best.
    """
    for sequence in sequences:
        sequence.predicted = []
    offers = [_Offer(s, _proposal(s, max_rows)) for s in sequences if s.request.prediction_ids]
    if not any(offer.proposal.tokens for offer in offers):
        return
    if planner is None:
        rows, least = ROW_CLASS, (1 + plan.tree.max_depth) / 2
    else:
        scale = _Scale(offers, len(sequences), plan, planner)
        rows = max((0, *CHAIN_ROWS), key=scale.rate)
        least = scale.least(rows)
    for offer in offers:
        offer.sequence.predicted = offer.proposal.tokens[: offer.length(rows, least)]


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a sequence's prediction has to offer for the next step."""

    sequence: Sequence
    proposal: Proposal

    def length(self, rows: int, least: float) -> int:
        """Tokens to verify in so many rows; 0 unless the step promises more than `least`."""
        room = rows - self.sequence.rows_needed(ROOT_ONLY)
        length = max(0, min(room, len(self.proposal.tokens)))
        return length if 1.0 + self.proposal.expected[length] > least else 0


def _proposal(sequence: Sequence, max_rows: int) -> Proposal:
    """What may follow the sequence's tokens, the provisional ones too, as far as there is room."""
    if sequence.lookup is None:
        sequence.lookup = Lookup(sequence.request.prediction_ids)
        sequence.lookup.extend(sequence.output)
    known = len(sequence.provisional)
    left = sequence.request.max_tokens - sequence.num_output - known
    return sequence.lookup.propose(sequence.provisional, min(max_rows - known, left) - 1)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Weighs lengths of stretches for `batch` sequences, of which some have something to offer."""

    offers: Items[_Offer]
    batch: int
    plan: DraftPlan
    planner: Planner

    def rate(self, rows: int) -> float:
        """Predicted tokens per millisecond with stretches of so many rows at most."""
        least, plan = self.least(rows), self.plan
        taken = [(o, n) for o in self.offers if (n := o.length(rows, least))]
        drafting = self.batch - len(taken)
        tokens = drafting * self.planner.tau(plan)
        tokens += sum(1.0 + offer.proposal.expected[n] for offer, n in taken)
        needed = [offer.sequence.rows_needed(ROOT_ONLY) + n for offer, n in taken]
        if drafting:
            needed.append(plan.tree.num_nodes)
        draft_ms = self.planner.costs.draft_ms(drafting, len(plan.passes))
        return tokens / (self._verify_ms(max(needed)) + draft_ms)

    def least(self, rows: int) -> float:
        """Tokens that the plan is expected to give in the time that so many rows take."""
        costs, plan = self.planner.costs, self.plan
        draft_ms = costs.draft_ms(self.batch, len(plan.passes))
        drafted_ms = self._verify_ms(plan.tree.num_nodes) + draft_ms
        return self.planner.tau(plan) * min(1.0, self._verify_ms(rows) / drafted_ms)

    def _verify_ms(self, rows: int) -> float:
        return self.planner.costs.verify_ms(self.batch, rows_each(rows, self.batch))
