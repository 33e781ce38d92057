"""Drafting over a tree: m passes of the Falcon head, on its own key-value slots and mixer states.

The first pass reads the newest K committed positions; each later pass reads, for every expanded
node, the K nodes that end in it. Nothing speculative outlives the step: real features replace
predicted ones when the accepted tokens are fed back by `extend`.

Position i holds (x_{i+1}, f_i), so a root at token position t stands on drafter positions 0..t-1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tree.tables import DraftPass, draft_passes
from tree.topology import Tree

from .model import FalconHead, State, TargetParts, rope_table

# scores(draft_logits [B,E,K,V], depth of slot 0) -> scores of the same shape; the engine's sampler
# bound to the batch, so that candidates are ranked by the noise that the target will use.
Scores = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class PassTables:
    """A `DraftPass` as tensors; `candidates` [M] indexes the flattened [E, K, width]."""

    blocks: int
    block_nodes: Tensor
    parent_blocks: Tensor
    nodes: Tensor
    candidates: Tensor
    width: int
    row_mask: Tensor


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """A tree and the passes that fill it, ready on the device."""

    tree: Tree
    passes: tuple[PassTables, ...]
    num_rows: int  # block rows of all passes but the first


def build_plan(tree: Tree, block_size: int, device: torch.device) -> DraftPlan:
    """Tensors for a tree; a tree of the root alone makes a plan without passes."""
    passes = draft_passes(tree, block_size)
    tables = tuple(_pass_tables(one, block_size, device) for one in passes)
    num_rows = sum(len(one.blocks) * block_size for one in passes[1:])
    return DraftPlan(tree, tables, num_rows)


def _pass_tables(one: DraftPass, block_size: int, device: torch.device) -> PassTables:
    width = max(one.node_ranks) + 1
    flat = [
        (block * block_size + slot) * width + rank
        for block, slot, rank in zip(one.node_blocks, one.node_slots, one.node_ranks, strict=True)
    ]
    return PassTables(
        blocks=len(one.blocks),
        block_nodes=torch.tensor(one.block_nodes, dtype=torch.long, device=device),
        parent_blocks=torch.tensor(one.parent_blocks, dtype=torch.long, device=device),
        nodes=torch.tensor(one.nodes, device=device),
        candidates=torch.tensor(flat, device=device),
        width=width,
        row_mask=torch.tensor(one.row_mask, dtype=torch.bool, device=device),
    )


class FalconDrafter:
    """A Falcon head with slots: keys and values, mixer state and last K mixer outputs of each.

    Committed position p stands in column `scratch + p % columns` of its slot, where `columns` is the
    head's window or the capacity; the first `scratch` columns take the block rows of a draft.
    """

    def __init__(
        self,
        head: FalconHead,
        parts: TargetParts,
        num_slots: int,
        capacity: int,
        scratch: int,
    ) -> None:
        config = head.config
        self.head = head
        self.parts = parts
        self.block_size = config.block_size
        self.scratch = scratch
        self.columns = min(capacity, config.window or capacity)
        weight = head.norm.weight
        shape = (config.num_layers, 2, num_slots, config.num_heads, scratch + self.columns)
        self.keys_values = weight.new_zeros(*shape, config.head_dim)
        h, c = head.initial_state(num_slots)
        self.h, self.c = h.clone(), c.clone()  # [2, slots, H] each
        self.tail = weight.new_zeros(num_slots, config.block_size, config.hidden_size)
        self.lengths = [0] * num_slots
        positions = torch.arange(capacity + scratch, device=weight.device)
        self.rope = rope_table(positions, config).to(weight.dtype)
        self.column_ids = torch.arange(self.columns, device=weight.device)

    def reset(self, slot: int) -> None:
        """Forget the slot's sequence."""
        self.lengths[slot] = 0
        self.h[:, slot] = 0
        self.c[:, slot] = 0
        self.tail[slot] = 0

    def prefill(self, slot: int, tokens: Tensor, features: Tensor) -> None:
        """Take in a prompt: tokens x_1..x_t [S] and features f_0..f_{t-1} [S,H].

        With a window only the newest positions are read, so that the cost stays bounded.
        """
        skipped = max(0, len(tokens) - self.columns)
        self.lengths[slot] += skipped
        if len(tokens) > skipped:
            self.extend([slot], tokens[None, skipped:], features[None, skipped:], [len(tokens) - skipped])

    def extend(
        self, slots: Sequence[int], tokens: Tensor, features: Tensor, counts: Sequence[int]
    ) -> None:
        """Commit `counts[b]` >= 1 positions of each slot: tokens [B,A], features [B,A,H].

        Columns past a slot's count are padding. Padding needs A <= MAX_UNROLLED_STEPS.
        """
        index = torch.tensor(slots, device=self.rope.device)
        state = self.h[:, index], self.c[:, index]
        embeddings = self.parts.embed(tokens).to(self.rope.dtype)
        h, states = self.head.mix(embeddings, features.to(self.rope.dtype), state)
        starts = [self.lengths[slot] for slot in slots]
        positions = self._positions(starts, tokens.shape[1])
        keys_values = self.head.keys_values(h, self.rope[positions])
        for b, (slot, count) in enumerate(zip(slots, counts, strict=True)):
            last = states[min(count, len(states)) - 1]
            self.h[:, slot], self.c[:, slot] = last[0][:, b], last[1][:, b]
            self.tail[slot] = torch.cat((self.tail[slot], h[b, :count]))[-self.block_size :]
            columns = self.scratch + positions[b, :count] % self.columns
            self.keys_values[:, :, slot, :, columns] = keys_values[:, :, b, :, :count]
            self.lengths[slot] += count

    def draft(self, slots: Sequence[int], roots: Tensor, plan: DraftPlan, scores: Scores) -> Tensor:
        """Name every node of the plan's tree for each slot: roots [B] -> tokens [B,N]."""
        tokens = roots.new_zeros(len(slots), plan.tree.num_nodes)
        tokens[:, 0] = roots
        index = torch.tensor(slots, device=roots.device)
        lengths = [self.lengths[slot] for slot in slots]
        features = self._root_pass(slots, index, lengths)[:, None]  # [B, E, K, H]
        states = self.h[:, index, None], self.c[:, index, None]  # [layers, B, E, H]
        row = 0
        for number, tables in enumerate(plan.passes):
            if number:
                features, states = self._block_pass(
                    slots, index, lengths, tokens, features, states, tables, number, row
                )
                row += tables.blocks * self.block_size
            ranked = scores(self.parts.head(features), number * self.block_size + 1)
            if tables.width == 1:
                best = ranked.max(-1, keepdim=True).indices
            else:
                best = ranked.topk(tables.width, dim=-1).indices  # [B, E, K, width]
            tokens[:, tables.nodes] = best.flatten(1)[:, tables.candidates]
        return tokens

    def _root_pass(self, slots: Sequence[int], index: Tensor, lengths: list[int]) -> Tensor:
        """Predicted features [B,K,H] of the newest K committed positions."""
        k = self.block_size
        positions = self._positions([length - k for length in lengths], k).clamp_(min=0)
        committed = self._committed_mask(lengths, positions)
        mask = torch.cat((committed.new_zeros(*committed.shape[:-1], self.scratch), committed), -1)
        keys_values = self._gather(slots, index, mask.shape[-1])
        return self.head.predict(self.tail[index], keys_values, self.rope[positions], mask[:, None])

    def _block_pass(
        self,
        slots: Sequence[int],
        index: Tensor,
        lengths: list[int],
        tokens: Tensor,
        features: Tensor,
        states: State,
        tables: PassTables,
        number: int,
        row: int,
    ) -> tuple[Tensor, State]:
        """One later pass: its predicted features [B,E,K,H] and states [layers,B,E,H]."""
        batch, k = len(slots), self.block_size
        parents = features[:, tables.parent_blocks].flatten(0, 1)  # [B*E, K, H]
        embeddings = self.parts.embed(tokens[:, tables.block_nodes]).flatten(0, 1)
        before = tuple(state[:, :, tables.parent_blocks].flatten(1, 2) for state in states)
        h, after = self.head.mix(embeddings.to(parents.dtype), parents, (before[0], before[1]))
        h = h.unflatten(0, (batch, tables.blocks)).flatten(1, 2)  # [B, E*K, H]
        start = [length + (number - 1) * k for length in lengths]
        positions = self._positions(start, k).repeat(1, tables.blocks)
        rope = self.rope[positions]
        stop = row + h.shape[1]
        self._write_scratch(slots, row, self.head.keys_values(h, rope))
        committed = self._committed_mask(lengths, positions)
        own = torch.zeros(h.shape[1], self.scratch, dtype=torch.bool, device=h.device)
        own[:, :stop] = tables.row_mask
        mask = torch.cat((own.expand(batch, -1, -1), committed), -1)
        keys_values = self._gather(slots, index, mask.shape[-1])
        predicted = self.head.predict(h, keys_values, rope, mask[:, None])
        shape = (batch, tables.blocks)
        last = after[-1][0].unflatten(1, shape), after[-1][1].unflatten(1, shape)
        return predicted.unflatten(1, (tables.blocks, k)), last

    def _positions(self, starts: Sequence[int], count: int) -> Tensor:
        """[B, count] int64: `starts[b]`, `starts[b] + 1`, ..."""
        first = torch.tensor(starts, device=self.rope.device)[:, None]
        return first + torch.arange(count, device=first.device)

    def _committed_mask(self, lengths: list[int], positions: Tensor) -> Tensor:
        """[B, S, C] bool: which committed columns rows at `positions` [B,S] see.

        Column c holds the newest position p < length with p % columns == c; none if p is negative.
        """
        used = min(max(lengths), self.columns)
        newest = torch.tensor(lengths, device=positions.device)[:, None] - 1
        held = newest - (newest - self.column_ids[:used]) % self.columns  # [B, C]
        visible = (held >= 0)[:, None].expand(-1, positions.shape[1], -1)
        if self.head.config.window is not None:
            visible = visible & (positions[:, :, None] - held[:, None] < self.head.config.window)
        return visible

    def _gather(self, slots: Sequence[int], index: Tensor, extent: int) -> Tensor:
        """Keys and values [layers,2,B,heads,extent,D]; a view when there is one slot."""
        if len(slots) == 1:
            return self.keys_values[:, :, slots[0] : slots[0] + 1, :, :extent]
        return self.keys_values[:, :, index, :, :extent]

    def _write_scratch(self, slots: Sequence[int], row: int, keys_values: Tensor) -> None:
        for b, slot in enumerate(slots):
            stop = row + keys_values.shape[-2]
            self.keys_values[:, :, slot, :, row:stop] = keys_values[:, :, b]
