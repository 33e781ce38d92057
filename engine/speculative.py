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

from drafter.drafting import DraftPlan, FalconDrafter
from tree.tables import tree_mask
from tree.topology import Tree

from .rows import Rows, Segment, round_up
from .sampling import Sampler
from .sequence import Sequence
from .target import Target, Verdict

# Rows of one request's forward are padded to a multiple of this: plain decoding and verification
# then fall into one class of matrix kernels and give equal bits (docs/decisions.md, "Row classes").
ROW_CLASS = 16


@dataclass(frozen=True, slots=True)
class Accepted:
    """One sequence's path: `nodes` below the root, and the target's picks, one more than nodes."""

    nodes: list[int]
    picks: list[int]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step gave each sequence, and how long the models took."""

    accepted: list[Accepted]
    draft_ms: float
    verify_ms: float


class TreeRows:
    """A tree as padded target rows: `offsets` [T], `visible` [T,T]; a padding row is a root."""

    def __init__(self, tree: Tree, device: torch.device) -> None:
        count = round_up(tree.num_nodes, ROW_CLASS)
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
        self.rows = TreeRows(plan.tree, target.device)

    @property
    def num_drafted(self) -> int:
        """Tree nodes that one step verifies for a sequence, the root not counted."""
        return self.plan.tree.num_nodes - 1

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
        roots = torch.tensor([s.ids[-1] for s in sequences], device=self.target.device)
        if self.drafter is None or not self.plan.passes:
            return roots[:, None]
        params = [s.request.sampling for s in sequences]

        def scores(logits: Tensor, depth: int) -> Tensor:
            slots = range(depth, depth + logits.shape[-2])
            positions = [[s.length + slot for slot in slots] for s in sequences]
            return self.sampler.scores(logits, params, positions)

        return self.drafter.draft([s.slot for s in sequences], roots, self.plan, scores)

    def verify(self, draft: Tensor, sequences: Items[Sequence]) -> Verdict:
        """One target forward over all trees: logits [B,T,V], features [B,T,H], T padded rows."""
        count = len(self.rows.offsets)
        ids = draft[:, :1].repeat(1, count)
        ids[:, : draft.shape[1]] = draft
        segments = tuple(
            Segment(s.slot, s.length, self.rows.offsets, self.rows.visible) for s in sequences
        )
        flat = self.target.forward(ids.flatten(), Rows(segments))
        batch = len(sequences)
        return Verdict(flat.logits.view(batch, count, -1), flat.features.view(batch, count, -1))

    def accept(self, verdict: Verdict, draft: Tensor, sequences: Items[Sequence]) -> list[Accepted]:
        """The target picks its token at every visited node; follow the child that carries it."""
        tokens = draft.tolist()  # sync: the walk runs on the host
        paths = [Accepted([], []) for _ in sequences]
        at = dict.fromkeys(range(len(sequences)), 0)
        while at:
            rows, nodes = list(at), list(at.values())
            params = [sequences[b].request.sampling for b in rows]
            where = [sequences[b].length + 1 + len(paths[b].nodes) for b in rows]
            picks = self.sampler.pick(verdict.logits[rows, nodes], params, where)
            for b, pick in zip(rows, picks, strict=True):
                paths[b].picks.append(pick)
                carriers = [n for n in self.rows.children[at[b]] if tokens[b][n] == pick]
                if carriers:
                    paths[b].nodes.append(carriers[0])
                    at[b] = carriers[0]
                else:
                    del at[b]
        return paths

    def commit(
        self, accepted: Items[Accepted], verdict: Verdict, sequences: Items[Sequence]
    ) -> None:
        """Make accepted tokens permanent: compact KV, feed true features back to the drafter."""
        for sequence, path in zip(sequences, accepted, strict=True):
            self.target.slots.compact(sequence.slot, sequence.length, path.nodes)
        if self.drafter is None:
            return
        longest = max(len(path.picks) for path in accepted)
        tokens = torch.tensor([p.picks + [0] * (longest - len(p.picks)) for p in accepted])
        nodes = torch.tensor([[0, *p.nodes] + [0] * (longest - len(p.picks)) for p in accepted])
        batch = torch.arange(len(accepted))[:, None]
        features = verdict.features[batch, nodes.to(self.target.device)]  # [B, longest, H]
        counts = [len(path.picks) for path in accepted]
        slots = [s.slot for s in sequences]
        self.drafter.extend(slots, tokens.to(self.target.device), features, counts)
