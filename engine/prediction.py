"""Known texts: who verifies a stretch of one in place of a drafted tree.

The text is the client's prediction of the output or, with prompt lookup, the request's own prompt
and output. A stretch is a chain: its rows have plain decoding's bits, and it takes no pass of the
drafter. How long stretches may be is chosen for all requests of a forward together, by tokens per
second; none at all is one of the choices. Each request takes its own where it promises more for its
time than the plan does.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from drafter.plan import DraftPlan

from .config import NGrams
from .lookup import Lookup, Proposal
from .messages import Source
from .planner import Planner
from .predicted_text import PredictedText
from .prompt_lookup import prompt_lookup
from .rows import ROW_CLASS, rows_each
from .sequence import Sequence

CHAIN_ROWS = (4, 8, 16, 32, 64)  # rows of a request that are tried, where as many may be


def predict(
    sequences: Items[Sequence],
    plan: DraftPlan,
    planner: Planner | None,
    max_rows: int,
    ngrams: NGrams | None = None,
) -> None:
    """Choose the stretch that each sequence verifies next; who has none drafts `plan`.

    With `ngrams` each looks in its own text too. Without a planner there are no times to go by:
    stretches fill `ROW_CLASS` rows, and have to promise half of what the plan could bring at best.
    """
    for sequence in sequences:
        sequence.stretch = []
    found = [_offer(sequence, max_rows, ngrams) for sequence in sequences]
    offers = [offer for offer in found if offer is not None]
    if not offers:
        return
    if planner is None:
        rows, least = ROW_CLASS, (1 + plan.tree.max_depth) / 2
    else:
        scale = _Scale(offers, len(sequences), plan, planner)
        rows = max((0, *CHAIN_ROWS), key=scale.rate)
        least = scale.least(rows)
    for offer in offers:
        offer.sequence.stretch = offer.proposal.tokens[: offer.length(rows, least)]
        offer.sequence.stretch_source = offer.source


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a sequence could verify in the next step."""

    sequence: Sequence
    source: Source
    proposal: Proposal

    def length(self, rows: int, least: float) -> int:
        """Tokens to verify in so many rows; 0 unless the step promises more than `least`."""
        room = rows - self.sequence.rows_needed(1)
        length = max(0, min(room, len(self.proposal.tokens)))
        return length if 1.0 + self.proposal.expected[length] > least else 0


def _offer(sequence: Sequence, max_rows: int, ngrams: NGrams | None) -> _Offer | None:
    """What may follow the sequence's tokens, the provisional ones too, as far as there is room.

    Of two texts it is the one that promises more, of equals the client's.
    """
    known = len(sequence.provisional)
    left = sequence.request.max_tokens - sequence.num_output - known
    limit = min(max_rows - known, left) - 1
    offers = [
        _Offer(sequence, source, proposal)
        for source, lookup in _lookups(sequence, ngrams).items()
        if (proposal := lookup.propose(sequence.provisional, limit)).tokens
    ]
    return max(offers, key=lambda offer: offer.proposal.expected[-1], default=None)


def _lookups(sequence: Sequence, ngrams: NGrams | None) -> dict[Source, Lookup]:
    """The sequence's, the client's prediction first; made before its first step."""
    if sequence.lookups is None:
        sequence.lookups = {}
        if sequence.request.prediction_ids:
            predicted = Lookup(PredictedText(sequence.request.prediction_ids))
            predicted.extend(sequence.output)
            sequence.lookups["predicted"] = predicted
        if ngrams is not None:
            sequence.lookups["drafted"] = prompt_lookup(sequence.ids, ngrams)
    return sequence.lookups


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
        needed = [offer.sequence.rows_needed(1) + n for offer, n in taken]
        if drafting:
            needed.append(plan.num_verified)
        draft_ms = self.planner.draft_ms(plan, drafting)
        return tokens / (self._verify_ms(max(needed)) + draft_ms)

    def least(self, rows: int) -> float:
        """Tokens that the plan is expected to give in the time that so many rows take."""
        plan = self.plan
        draft_ms = self.planner.draft_ms(plan, self.batch)
        drafted_ms = self._verify_ms(plan.num_verified) + draft_ms
        return self.planner.tau(plan) * min(1.0, self._verify_ms(rows) / drafted_ms)

    def _verify_ms(self, rows: int) -> float:
        costs = self.planner.costs
        return costs.verify_ms(self.batch, rows_each(rows, self.batch, costs.fewest_rows))
