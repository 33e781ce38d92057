"""What each sequence verifies in the next step: a tree below its root, named by the drafter.

Who has a stretch of a known text verifies that, a chain, in its place. With a dynamic plan each
sequence keeps the nodes that the drafter trusts most.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from drafter.naming import Naming
from drafter.plan import DraftPlan
from drafter.protocol import Drafter
from tree.topology import ROOT_ONLY, Tree

from .mending import Mender
from .rows import TreeRows, rows_each
from .sampling import Sampler
from .selection import Selector
from .sequence import Sequence
from .target import Target

MOST_PARTS = 4096  # shapes of dynamic drafts that are kept, some kilobytes each


@dataclass(frozen=True, slots=True)
class Drafts:
    """`tokens` [B,N] of each draft's nodes, the root first, and padding behind; each sequence's
    `rows`: its unverified tokens, and below the last of them its draft; the drafter's `passes`.
    """

    tokens: Tensor
    rows: list[TreeRows]
    passes: float


class DraftMaker:
    """Lets a drafter draft for running sequences; without one, roots alone are verified."""

    def __init__(self, target: Target, drafter: Drafter | None, sampler: Sampler) -> None:
        self.target = target
        self.drafter = drafter
        self.sampler = sampler
        self._rows: dict[tuple[Tree, int, int], TreeRows] = {}
        self._parts: dict[tuple[DraftPlan, int, tuple[int, ...], int], TreeRows] = {}

    def make(self, sequences: Items[Sequence], plan: DraftPlan) -> Drafts:
        """Everything that the target needs to verify."""
        drafting = [s for s in sequences if not s.stretch]
        kept: list[list[int]] | None = None
        passes = 0.0
        if drafting:
            trees, kept, passes = self._draft_trees(drafting, plan)
        if len(drafting) == len(sequences):
            tokens = trees
        else:
            own = iter(trees) if drafting else iter(())
            tokens = pad_sequence(
                [self._stretch(s) if s.stretch else next(own) for s in sequences], batch_first=True
            )
        return Drafts(tokens, self._rows_of(sequences, plan, kept), passes)

    def catch_up(self, sequence: Sequence) -> None:
        """Let the drafter read the committed positions that it has not read yet."""
        drafter = self.drafter
        assert drafter is not None
        start, stop = drafter.lengths[sequence.slot], sequence.length
        if start < stop:
            ids = sequence.ids[start : stop + 1]
            features = self.target.features[sequence.slot, start:stop]
            drafter.prefill(sequence.slot, torch.tensor(ids, device=features.device), features)

    def _stretch(self, sequence: Sequence) -> Tensor:
        tokens = [sequence.unverified[-1], *sequence.stretch]
        return torch.tensor(tokens, device=self.target.device)

    def _draft_trees(
        self, sequences: Items[Sequence], plan: DraftPlan
    ) -> tuple[Tensor, list[list[int]] | None, float]:
        """The drafter's tokens for nodes of the plan, the root first: [B,N]; each sequence's nodes,
        None for all of them; and the passes that were run.
        """
        roots = torch.tensor([s.unverified[-1] for s in sequences], device=self.target.device)
        if self.drafter is None or not plan.passes:
            return roots[:, None], None, 0.0
        for sequence in sequences:
            self.catch_up(sequence)
        params = [s.request.sampling for s in sequences]
        newest = [s.length + len(s.provisional) for s in sequences]
        known = [s.provisional for s in sequences]
        selector = None if plan.dynamic is None else Selector(plan.dynamic, len(sequences))

        def rank(logits: Tensor, naming: Naming) -> Tensor:
            slots = range(naming.depth, naming.depth + logits.shape[-2])
            positions = [[position + slot for slot in slots] for position in newest]
            logits = self.sampler.adjust(logits, sequences, positions, known)
            if selector is None:
                return self.sampler.rank(logits, params, positions, naming.width)
            best, chances = self.sampler.rank_with_chances(
                logits, params, positions, naming.width, selector.sharpness
            )
            selector.hear(chances)
            return best

        mender = Mender(self.sampler, sequences, plan)

        def mend(logits: Tensor, tokens: Tensor, naming: Naming) -> bool:
            mender(logits, tokens, naming)
            if selector is None:
                return True
            selector.note(naming, logits.shape[1] * logits.shape[2])
            return selector.goes_on()

        guess = None
        if self.drafter.takes_guesses and len(sequences) == 1 and not mender.acts:
            guess = sequences[0].guesses.behind(sequences[0].ids, known[0])
        slots, acts = [s.slot for s in sequences], mender.acts or selector is not None
        tokens = self.drafter.draft(slots, roots, plan, rank, mend if acts else None, guess)
        if selector is None:
            return tokens, None, float(len(plan.passes))
        kept = selector.best([plan.num_beside(len(own)) for own in known])
        chosen = [own[nodes] for own, nodes in zip(tokens, kept, strict=True)]
        return pad_sequence(chosen, batch_first=True), kept, selector.passes

    def _rows_of(
        self, sequences: Items[Sequence], plan: DraftPlan, kept: list[list[int]] | None
    ) -> list[TreeRows]:
        """Each sequence's rows; `kept` are those of the sequences that draft a tree."""
        whole = tuple(range(plan.tree.num_nodes))
        nodes_of = iter(map(tuple, kept)) if kept is not None else repeat(whole)
        nodes = [whole[:1] if s.stretch else next(nodes_of) for s in sequences]
        needed = [s.rows_needed(len(own)) for s, own in zip(sequences, nodes, strict=True)]
        count = rows_each(max(needed), len(sequences), self.target.fewest_rows)
        rows = []
        for sequence, own in zip(sequences, nodes, strict=True):
            known = len(sequence.provisional)
            if sequence.stretch:
                rows.append(self._hung(ROOT_ONLY, known + len(sequence.stretch), count))
            elif kept is None:
                rows.append(self._hung(plan.tree, known, count))
            else:
                rows.append(self._part(plan, known, own, count))
        return rows

    def _part(self, plan: DraftPlan, length: int, nodes: tuple[int, ...], count: int) -> TreeRows:
        """`count` rows of some nodes of a plan's tree below a chain."""
        key = plan, length, nodes, count
        if key not in self._parts:
            if len(self._parts) == MOST_PARTS:
                self._parts.clear()
            whole = self._hung(plan.tree, length, length + plan.tree.num_nodes)
            own = [*range(length), *(length + node for node in nodes)]
            self._parts[key] = whole.part(own, count)
        return self._parts[key]

    def _hung(self, tree: Tree, length: int, count: int) -> TreeRows:
        """`count` rows of a tree below a chain."""
        if (tree, length, count) not in self._rows:
            hung = TreeRows.of(tree.below_chain(length), count, self.target.device)
            self._rows[tree, length, count] = hung
        return self._rows[tree, length, count]
