"""The step: draft a tree, verify it in one target pass, keep the best path (paper §3.1 and §3.4).

Everything below `SpeculativeDecoder.step` is named after a line of it. Without a drafter, or with a
tree of the root alone, the same code is plain decoding.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Items

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from drafter.plan import DraftPlan
from drafter.protocol import Drafter, Watcher
from tree.topology import MAX_NODES

from .drafts import DraftMaker, Drafts
from .outcome import Accepted, StepOutput, Walk, sources
from .rows import Rows
from .sampling import Sampler, logprobs
from .scheduler import Chunk
from .sequence import Sequence
from .target import Target, Verdict

# More rows than this in one forward on a CPU may fall into another class of matrix kernels.
MAX_CPU_ROWS = 32


class SpeculativeDecoder:
    """Target, drafter and plan of one engine, and the `others` that may be chosen; `drafter` None
    decodes plainly.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        plan: DraftPlan,
        sampler: Sampler,
        others: Items[DraftPlan] = (),
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.plan = plan
        self.others = others
        self.sampler = sampler
        self.max_rows = MAX_CPU_ROWS if target.device.type == "cpu" else MAX_NODES
        branch = max(own.tree.max_branch for own in (plan, *others))
        most = max(own.num_beside(self.max_rows) for own in (plan, *others))
        self.max_provisional = max(0, min(branch, self.max_rows - most))
        self.drafts = DraftMaker(target, drafter, sampler)

    @property
    def most_verified(self) -> int:
        """Nodes of any plan, the root too."""
        return max(plan.num_verified for plan in (self.plan, *self.others))

    def prefill(self, chunk: Chunk) -> bool:
        """Commit a chunk of a prompt to its slot; False where its features are not finite."""
        sequence = chunk.sequence
        start = max(chunk.start, sequence.length)
        if start >= chunk.stop:
            return True  # cached
        ids = sequence.ids[start : chunk.stop]
        features = self.target.prefill(sequence.slot, start, ids)
        sequence.length = chunk.stop
        return bool(features.isfinite().all())  # sync: a poisoned prompt must not be decoded

    def step(self, sequences: Items[Sequence], plan: DraftPlan) -> StepOutput:
        """Draft, verify, accept, commit: 1 to D+1 new tokens for each sequence.

        Who has a stretch of a known text verifies it, a chain, in place of the plan's tree.
        """
        start = time.perf_counter()
        drafts = self.draft(sequences, plan)
        drafted = time.perf_counter()
        verdict = self.verify(drafts, sequences)
        verified = time.perf_counter()
        accepted = self.accept(verdict, drafts, sequences)
        self.commit(accepted, verdict, sequences, has_drafted=bool(plan.passes))
        return StepOutput(
            accepted, drafts.passes, 1e3 * (drafted - start), 1e3 * (verified - drafted)
        )

    def draft(self, sequences: Items[Sequence], plan: DraftPlan) -> Drafts:
        """A tree for each sequence, or a stretch of a known text."""
        return self.drafts.make(sequences, plan)

    def verify(self, drafts: Drafts, sequences: Items[Sequence]) -> Verdict:
        """One target forward over all trees: logits [B,T,V], features [B,T,H], T padded rows."""
        tokens, offsets = drafts.tokens, torch.stack([own.offsets for own in drafts.rows])
        visible = torch.stack([own.visible for own in drafts.rows])
        ids = tokens.new_zeros(offsets.shape)
        for b, (sequence, own) in enumerate(zip(sequences, drafts.rows, strict=True)):
            known, stop = len(sequence.provisional), own.tree.num_nodes
            ids[b, :known] = tokens.new_tensor(sequence.unverified[:-1])
            ids[b, known:stop] = tokens[b, : stop - known]
        slots, lengths = [s.slot for s in sequences], [s.length for s in sequences]
        flat = self.target.forward(ids.flatten(), Rows(slots, lengths, offsets, visible))
        shape = (*ids.shape, -1)
        return Verdict(flat.logits.view(shape), flat.features.view(shape))

    def accept(
        self, verdict: Verdict, drafts: Drafts, sequences: Items[Sequence]
    ) -> list[Accepted]:
        """The target picks its token at every visited row; follow the child that carries it."""
        drafted, rows = drafts.tokens.tolist(), drafts.rows  # sync: the walk runs on the host
        walks = [
            Walk(own.tree, sequence.unverified[:-1] + tokens)
            for own, sequence, tokens in zip(rows, sequences, drafted, strict=True)
        ]
        sound, likeliest = self._judge(verdict, sequences)
        walking = dict(enumerate(walks))
        for b, sequence in enumerate(sequences):
            if sequence.request.picks_likeliest:
                walking.pop(b).run(likeliest[b], rows[b].children)
        while walking:
            picks = self._pick(verdict, walking, sequences)
            for (b, walk), pick in zip(list(walking.items()), picks, strict=True):
                walk.picks.append(pick)
                if sequences[b].closing(walk.picks) or not walk.follow(rows[b].children):
                    del walking[b]
        return [
            self._settle(sequence, walks[b], verdict.logits[b], sound[b])
            for b, sequence in enumerate(sequences)
        ]

    def _judge(
        self, verdict: Verdict, sequences: Items[Sequence]
    ) -> tuple[list[list[bool]], list[list[int]]]:
        """Of each row whether it is finite; and its likeliest token, if any sequence picks that."""
        if not any(sequence.request.picks_likeliest for sequence in sequences):
            finite = verdict.logits.amax(-1).isfinite()
            return finite.tolist(), []  # sync: the walk runs on the host
        best = verdict.logits.max(-1)
        return best.values.isfinite().tolist(), best.indices.tolist()  # sync: as above

    def _pick(
        self, verdict: Verdict, walking: Mapping[int, Walk], sequences: Items[Sequence]
    ) -> list[int]:
        """The target's picks at the rows that walks have come to, by their requests' rules."""
        own = [sequences[b] for b in walking]
        params = [sequence.request.sampling for sequence in own]
        paths = [walk.picks for walk in walking.values()]  # the tokens that led to the rows
        where = [s.length + 1 + len(path) for s, path in zip(own, paths, strict=True)]
        logits = torch.stack([verdict.logits[b, walk.at[0]] for b, walk in walking.items()])
        positions = [[position] for position in where]
        logits = self.sampler.adjust(logits[:, None], own, positions, paths)[:, 0]
        return self.sampler.pick(logits, params, where)

    def _settle(
        self, sequence: Sequence, walk: Walk, logits: Tensor, sound: list[bool]
    ) -> Accepted:
        """Which picks are final: those of rows that stand in plain decoding's columns.

        A branch's keys stand in others, and its sums run in another order: bits differ, in float32
        too, and a near tie may fall otherwise (docs/decisions.md, "Provisional tokens").
        """
        nodes, picks = walk.nodes, walk.picks
        final = 1 + sum(node == depth for depth, node in enumerate(nodes, start=1))
        provisional = picks[final : final + self.max_provisional]
        used = nodes[: final + len(provisional) - 1]  # the rest has to be drafted again
        known, asked = len(sequence.provisional), sequence.request.logprobs
        visited = [0, *nodes]
        return Accepted(
            walk=walk,
            picks=picks[:final],
            provisional=provisional,
            sources=sources(sequence, nodes)[: final + len(provisional)],
            root=known,
            drafted=[walk.tree.paths[node][known:] for node in used if node > known],
            stretch=sequence.stretch_source if sequence.stretch else None,
            is_sound=all(sound[node] for node in visited),
            logprobs=[]
            if asked is None
            else logprobs(logits[visited[:final]], picks[:final], asked),
            closing=None if provisional else sequence.closing(picks[:final]),
        )

    def commit(
        self,
        accepted: Items[Accepted],
        verdict: Verdict,
        sequences: Items[Sequence],
        has_drafted: bool,
    ) -> None:
        """Make final picks permanent: keep their rows, feed true features back to the drafter."""
        for b, (sequence, path) in enumerate(zip(sequences, accepted, strict=True)):
            kept = verdict.features[b, : len(path.picks)]
            self.target.commit(sequence.slot, sequence.length, kept)
        if self.drafter is not None:
            self._feed_back(self.drafter, accepted, verdict, sequences, has_drafted)
            if has_drafted and isinstance(self.drafter, Watcher):
                _show_picks(self.drafter, accepted, verdict, sequences)
        for sequence, path in zip(sequences, accepted, strict=True):
            sequence.provisional = path.provisional
            sequence.provisional_sources = path.sources[len(path.picks) :]
            sequence.stretch = []

    def _feed_back(
        self,
        drafter: Drafter,
        accepted: Items[Accepted],
        verdict: Verdict,
        sequences: Items[Sequence],
        has_drafted: bool,
    ) -> None:
        """Give the drafter each path's new tokens with the features of the rows that named them.

        Where it did not draft, it reads them when it drafts again (`catch_up`), if not before.
        """
        fed: list[tuple[int, list[int], Tensor]] = []
        for b, (sequence, path) in enumerate(zip(sequences, accepted, strict=True)):
            known = len(sequence.provisional)
            if drafter.lengths[sequence.slot] < sequence.length + known:
                continue
            if len(path.walk.nodes) < known:  # a provisional token that it has read was wrong
                drafter.rewind(sequence.slot, sequence.length)
            elif has_drafted and not path.stretch:
                tokens = [*path.picks, *path.provisional][known:]
                rows = [0, *path.walk.nodes][known:][: len(tokens)]
                fed.append((sequence.slot, tokens, verdict.features[b, rows]))
        if fed:
            slots = [slot for slot, _, _ in fed]
            counts = [len(tokens) for _, tokens, _ in fed]
            padded = [tokens + [0] * (max(counts) - len(tokens)) for _, tokens, _ in fed]
            features = pad_sequence([rows for _, _, rows in fed], batch_first=True)
            drafter.extend(slots, torch.tensor(padded, device=features.device), features, counts)


def _show_picks(
    drafter: Watcher, accepted: Items[Accepted], verdict: Verdict, sequences: Items[Sequence]
) -> None:
    """Let a drafter see the target's picks after all nodes that it drafted, accepted or not."""
    for logits, sequence, path in zip(verdict.logits, sequences, accepted, strict=True):
        if path.stretch is None:
            drafted = logits[path.root : path.walk.tree.num_nodes]
            drafter.watch(sequence.slot, drafted.max(-1).indices.tolist())  # sync
