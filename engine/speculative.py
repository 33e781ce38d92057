"""The step: draft a tree, verify it in one target pass, keep the best path (paper §3.1 and §3.4).

Everything below `SpeculativeDecoder.step` is named after a line of it. Without a drafter, or with a
tree of the root alone, the same code is plain decoding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from drafter.drafting import DraftPlan, FalconDrafter
from tree.tables import tree_mask
from tree.topology import MAX_NODES, Tree

from .rows import Rows, Segment, round_up
from .sampling import Sampler
from .sequence import Sequence
from .target import Target, Verdict

# Rows of one request's forward are padded to a multiple of this: plain decoding and verification
# then fall into one class of matrix kernels and give equal bits (docs/decisions.md, "Row classes").
ROW_CLASS = 16
# More rows than this in one forward on a CPU fall into another class of matrix kernels.
MAX_CPU_ROWS = 32


@dataclass(frozen=True, slots=True)
class Accepted:
    """One sequence's path: `nodes` below the first row, and the target's pick at each visited row.

    `picks` are final. `provisional` are those of rows off the top-1 chain, where a row's last bits
    may differ from plain decoding's: the next step verifies them again, on the chain.
    """

    nodes: list[int]
    picks: list[int]
    provisional: list[int]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step gave each sequence, and how long the models took."""

    accepted: list[Accepted]
    draft_ms: float
    verify_ms: float


class TreeRows:
    """A tree as padded target rows: `offsets` [T], `visible` [T,T]; a padding row is a root."""

    def __init__(self, tree: Tree, count: int, device: torch.device) -> None:
        self.tree = tree
        self.offsets = torch.zeros(count, dtype=torch.long)
        self.offsets[: tree.num_nodes] = torch.tensor(tree.depths)
        self.visible = torch.zeros(count, count, dtype=torch.bool)
        self.visible[:, 0] = True
        self.visible[: tree.num_nodes, : tree.num_nodes] = torch.tensor(tree_mask(tree))
        self.offsets, self.visible = self.offsets.to(device), self.visible.to(device)
        self.children = [tree.children(node) for node in range(tree.num_nodes)]


class SpeculativeDecoder:
    """Target, drafter and plan of one engine; `drafter` None decodes plainly."""

    def __init__(
        self, target: Target, drafter: FalconDrafter | None, plan: DraftPlan, sampler: Sampler
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.plan = plan
        self.sampler = sampler
        branch = 0 if target.exact_branches else plan.tree.max_branch
        limit = MAX_CPU_ROWS if target.device.type == "cpu" else MAX_NODES
        self.max_provisional = max(0, min(branch, limit - plan.tree.num_nodes))
        self._rows: dict[tuple[int, int], TreeRows] = {}

    @property
    def num_drafted(self) -> int:
        """Tree nodes that one step drafts for a sequence, the root not counted."""
        return self.plan.tree.num_nodes - 1

    @property
    def max_rows(self) -> int:
        """The most target rows that one step takes for a sequence."""
        return round_up(self.plan.tree.num_nodes + self.max_provisional, ROW_CLASS)

    def rows(self, sequences: Items[Sequence]) -> list[TreeRows]:
        """Each sequence's rows: its unverified tokens, below the last of them the plan's tree."""
        lengths = [len(s.provisional) for s in sequences]
        count = round_up(self.plan.tree.num_nodes + max(lengths), ROW_CLASS)
        for length in lengths:
            if (length, count) not in self._rows:
                tree = self.plan.tree.below_chain(length)
                self._rows[length, count] = TreeRows(tree, count, self.target.device)
        return [self._rows[length, count] for length in lengths]

    def prefill(self, sequence: Sequence) -> None:
        """Commit every prompt token but the root to the sequence's slot, target and drafter."""
        features = self.target.prefill(sequence.slot, sequence.ids[:-1])
        if self.drafter is not None:
            self.drafter.reset(sequence.slot)
            tokens = torch.tensor(sequence.ids[1:], device=self.target.device)
            self.drafter.prefill(sequence.slot, tokens, features)

    def step(self, sequences: Items[Sequence]) -> StepOutput:
        """Draft, verify, accept, commit: 1 to D+1 new tokens for each sequence."""
        start = time.perf_counter()
        draft = self.draft(sequences)
        drafted = time.perf_counter()
        verdict = self.verify(draft, sequences)
        verified = time.perf_counter()
        accepted = self.accept(verdict, draft, sequences)
        self.commit(accepted, verdict, sequences)
        return StepOutput(accepted, 1e3 * (drafted - start), 1e3 * (verified - drafted))

    def draft(self, sequences: Items[Sequence]) -> Tensor:
        """Tokens of the tree's nodes, the root first: [B,N]."""
        roots = torch.tensor([s.unverified[-1] for s in sequences], device=self.target.device)
        if self.drafter is None or not self.plan.passes:
            return roots[:, None]
        params = [s.request.sampling for s in sequences]

        def scores(logits: Tensor, depth: int) -> Tensor:
            slots = range(depth, depth + logits.shape[-2])
            newest = [s.length + len(s.provisional) for s in sequences]
            positions = [[position + slot for slot in slots] for position in newest]
            return self.sampler.scores(logits, params, positions)

        return self.drafter.draft([s.slot for s in sequences], roots, self.plan, scores)

    def verify(self, draft: Tensor, sequences: Items[Sequence]) -> Verdict:
        """One target forward over all trees: logits [B,T,V], features [B,T,H], T padded rows."""
        rows = self.rows(sequences)
        batch, count = len(sequences), len(rows[0].offsets)
        ids = draft.new_zeros(batch, count)
        for b, sequence in enumerate(sequences):
            stop = len(sequence.provisional) + draft.shape[1]
            ids[b, :stop] = torch.cat((draft.new_tensor(sequence.unverified[:-1]), draft[b]))
        segments = tuple(
            Segment(s.slot, s.length, own.offsets, own.visible)
            for s, own in zip(sequences, rows, strict=True)
        )
        flat = self.target.forward(ids.flatten(), Rows(segments))
        return Verdict(flat.logits.view(batch, count, -1), flat.features.view(batch, count, -1))

    def accept(self, verdict: Verdict, draft: Tensor, sequences: Items[Sequence]) -> list[Accepted]:
        """The target picks its token at every visited row; follow the child that carries it."""
        drafted = draft.tolist()  # sync: the walk runs on the host
        tokens = [s.unverified[:-1] + own for s, own in zip(sequences, drafted, strict=True)]
        rows = self.rows(sequences)
        nodes: list[list[int]] = [[] for _ in sequences]
        picks: list[list[int]] = [[] for _ in sequences]
        at = dict.fromkeys(range(len(sequences)), 0)
        while at:
            visited = list(at)
            params = [sequences[b].request.sampling for b in visited]
            where = [sequences[b].length + 1 + len(nodes[b]) for b in visited]
            logits = verdict.logits[visited, list(at.values())]
            for b, pick in zip(visited, self.sampler.pick(logits, params, where), strict=True):
                picks[b].append(pick)
                carriers = [n for n in rows[b].children[at[b]] if tokens[b][n] == pick]
                if carriers:
                    nodes[b].append(carriers[0])
                    at[b] = carriers[0]
                else:
                    del at[b]
        return [self._settle(*path) for path in zip(nodes, picks, strict=True)]

    def _settle(self, nodes: list[int], picks: list[int]) -> Accepted:
        """Which picks are final: those of rows that stand in plain decoding's columns."""
        final = len(picks)
        if not self.target.exact_branches:
            final = 1 + sum(node == depth for depth, node in enumerate(nodes, start=1))
        return Accepted(nodes, picks[:final], picks[final : final + self.max_provisional])

    def commit(
        self, accepted: Items[Accepted], verdict: Verdict, sequences: Items[Sequence]
    ) -> None:
        """Make final picks permanent: compact KV, feed true features back to the drafter."""
        for sequence, path in zip(sequences, accepted, strict=True):
            kept = path.nodes[: len(path.picks) - 1]
            self.target.slots.compact(sequence.slot, sequence.length, kept)
        if self.drafter is not None:
            self._feed_back(self.drafter, accepted, verdict, sequences)
        for sequence, path in zip(sequences, accepted, strict=True):
            sequence.provisional = path.provisional

    def _feed_back(
        self,
        drafter: FalconDrafter,
        accepted: Items[Accepted],
        verdict: Verdict,
        sequences: Items[Sequence],
    ) -> None:
        """Give the drafter each path's new tokens with the features of the rows that named them."""
        fed: list[tuple[Sequence, list[int], Tensor]] = []
        for b, (sequence, path) in enumerate(zip(sequences, accepted, strict=True)):
            known = len(sequence.provisional)
            if len(path.nodes) < known:
                self._relearn(drafter, sequence.slot, [*sequence.ids, *path.picks])
                continue
            tokens = [*path.picks, *path.provisional][known:]
            rows = [0, *path.nodes][known:][: len(tokens)]
            fed.append((sequence, tokens, verdict.features[b, rows]))
        if fed:
            counts = [len(tokens) for _, tokens, _ in fed]
            padded = [tokens + [0] * (max(counts) - len(tokens)) for _, tokens, _ in fed]
            features = pad_sequence([rows for _, _, rows in fed], batch_first=True)
            slots = [sequence.slot for sequence, _, _ in fed]
            drafter.extend(slots, torch.tensor(padded, device=features.device), features, counts)

    def _relearn(self, drafter: FalconDrafter, slot: int, ids: list[int]) -> None:
        """A provisional token that the drafter has read was wrong: read the sequence anew."""
        features = self.target.prefill(self.target.spare_slot, ids[:-1])
        drafter.reset(slot)
        drafter.prefill(slot, torch.tensor(ids[1:], device=features.device), features)
