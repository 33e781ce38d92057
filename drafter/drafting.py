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
from torch.nn import functional as F

from tree.tables import DraftPass, draft_passes
from tree.topology import Tree

from .config import DrafterError
from .model import MAX_UNROLLED_STEPS, FalconHead, State, TargetParts, rope_table

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
    """Tensors for a tree; a tree of the root alone makes a plan without passes.

    Raises `DrafterError` for a tree deeper than a step can feed back.
    """
    if tree.max_depth >= MAX_UNROLLED_STEPS:
        raise DrafterError(f"a tree of depth {tree.max_depth}; at most {MAX_UNROLLED_STEPS - 1}")
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


@dataclass(slots=True)
class _Draft:
    """A draft in the making: what one pass leaves for the next.

    `held` [B,C] is the position in each committed column, negative where there is none; `features`
    [B,E,K,H] and `states` [layers,B,E,H] are the last pass's; `row` block rows stand in scratch.
    """

    slots: Sequence[int]
    index: Tensor
    lengths: list[int]
    held: Tensor
    tokens: Tensor
    states: State
    features: Tensor
    row: int = 0


class FalconDrafter:
    """A Falcon head with slots: keys and values, mixer state and last K mixer outputs of each.

    Committed position p stands in column `scratch + p % columns` of its slot: a ring where the head
    has a window. The first `scratch` columns take the block rows of a draft.
    """

    def __init__(
        self, head: FalconHead, parts: TargetParts, num_slots: int, capacity: int, scratch: int
    ) -> None:
        """`head` must be unrolled. Slots take `capacity` positions, and `scratch` block rows, which
        is a plan's `num_rows`.
        """
        config = head.config
        self.head = head
        self.parts = parts
        self.block_size = config.block_size
        self.scratch = scratch
        # A step feeds back up to MAX_UNROLLED_STEPS positions, whose first sees a whole window.
        window = capacity if config.window is None else config.window + MAX_UNROLLED_STEPS
        self.columns = min(capacity, window)
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
        tokens, features = tokens[None, skipped:], features[None, skipped:]
        if tokens.shape[1]:
            self.extend([slot], tokens, features, [tokens.shape[1]])

    def extend(
        self, slots: Sequence[int], tokens: Tensor, features: Tensor, counts: Sequence[int]
    ) -> None:
        """Commit `counts[b]` >= 1 positions of each slot: tokens [B,A], features [B,A,H].

        What stands past a slot's count is padding, for which A must be <= MAX_UNROLLED_STEPS.
        """
        index = torch.tensor(slots, device=self.rope.device)
        state = self.h[:, index], self.c[:, index]
        embeddings = self.parts.embed(tokens).to(self.rope.dtype)
        h, state_after = self.head.mix(embeddings, features.to(self.rope.dtype), state)
        positions = self._positions([self.lengths[slot] for slot in slots], tokens.shape[1])
        keys_values = self.head.keys_values(h, self.rope[positions])
        for b, (slot, count) in enumerate(zip(slots, counts, strict=True)):
            after_h, after_c = state_after(count)
            self.h[:, slot], self.c[:, slot] = after_h[:, b], after_c[:, b]
            self.tail[slot] = torch.cat((self.tail[slot], h[b, :count]))[-self.block_size :]
            columns = self.scratch + positions[b, :count] % self.columns
            self.keys_values[:, :, slot, :, columns] = keys_values[:, :, b, :, :count]
            self.lengths[slot] += count

    def draft(self, slots: Sequence[int], roots: Tensor, plan: DraftPlan, scores: Scores) -> Tensor:
        """Name every node of the plan's tree for each slot: roots [B] -> tokens [B,N]."""
        if plan.num_rows > self.scratch:
            raise ValueError(
                f"a plan of {plan.num_rows} block rows; there is room for {self.scratch}"
            )
        draft = self._begin(slots, roots, plan)
        for number, tables in enumerate(plan.passes):
            if number == 0:
                self._root_pass(draft)
            else:
                self._block_pass(draft, tables, number)
            ranked = scores(self.parts.head(draft.features), number * self.block_size + 1)
            if tables.width == 1:
                best = ranked.max(-1, keepdim=True).indices
            else:
                best = ranked.topk(tables.width, dim=-1).indices  # [B, E, K, width]
            draft.tokens[:, tables.nodes] = best.flatten(1)[:, tables.candidates]
        return draft.tokens

    def _begin(self, slots: Sequence[int], roots: Tensor, plan: DraftPlan) -> _Draft:
        """Column c holds the newest position p < length with p % columns == c."""
        index = torch.tensor(slots, device=roots.device)
        lengths = [self.lengths[slot] for slot in slots]
        used = min(max(lengths), self.columns)
        newest = torch.tensor(lengths, device=roots.device)[:, None] - 1
        held = newest - (newest - self.column_ids[:used]) % self.columns  # [B, C]
        tokens = roots.new_zeros(len(slots), plan.tree.num_nodes)
        tokens[:, 0] = roots
        states = self.h[:, index, None], self.c[:, index, None]
        return _Draft(slots, index, lengths, held, tokens, states, self.tail[index][:, None])

    def _root_pass(self, draft: _Draft) -> None:
        """The newest K committed positions; they see each other and all before them."""
        starts = [length - self.block_size for length in draft.lengths]
        positions = self._positions(starts, self.block_size).clamp_(min=0)
        own = torch.zeros(self.block_size, self.scratch, dtype=torch.bool, device=positions.device)
        mask = self._mask(draft, positions, own)
        rows = self.tail[draft.index]
        features = self.head.predict(rows, self._visible(draft, mask), self.rope[positions], mask)
        draft.features = features[:, None]

    def _block_pass(self, draft: _Draft, tables: PassTables, number: int) -> None:
        """A block of K nodes for each expanded node, from its parent block's features and state."""
        batch, blocks, k = len(draft.slots), tables.blocks, self.block_size
        parents = draft.features[:, tables.parent_blocks].flatten(0, 1)  # [B*E, K, H]
        embeddings = self.parts.embed(draft.tokens[:, tables.block_nodes]).flatten(0, 1)
        h0, c0 = (state[:, :, tables.parent_blocks].flatten(1, 2) for state in draft.states)
        h, state_after = self.head.mix(embeddings.to(parents.dtype), parents, (h0, c0))
        rows = h.reshape(batch, blocks * k, -1)  # [B, E*K, H]
        starts = [length + (number - 1) * k for length in draft.lengths]
        positions = self._positions(starts, k).repeat(1, blocks)
        rope = self.rope[positions]
        stop = draft.row + rows.shape[1]
        keys_values = self.head.keys_values(rows, rope)
        for b, slot in enumerate(draft.slots):
            self.keys_values[:, :, slot, :, draft.row : stop] = keys_values[:, :, b]
        mask = self._mask(draft, positions, tables.row_mask)
        predicted = self.head.predict(rows, self._visible(draft, mask), rope, mask)
        hidden = rows.shape[-1]
        h1, c1 = (state.view(len(state), batch, blocks, hidden) for state in state_after(k))
        draft.features = predicted.reshape(batch, blocks, k, -1)
        draft.states, draft.row = (h1, c1), stop

    def _positions(self, starts: Sequence[int], count: int) -> Tensor:
        """[B, count] int64: `starts[b]`, `starts[b] + 1`, ..."""
        return torch.tensor(starts, device=self.rope.device)[:, None] + self.column_ids[:count]

    def _mask(self, draft: _Draft, positions: Tensor, own: Tensor) -> Tensor:
        """[B,1,S,scratch+C] bool for rows at `positions` [B,S] that see `own` [S,R] of scratch."""
        committed = (draft.held >= 0)[:, None].expand(-1, positions.shape[1], -1)
        if self.head.config.window is not None:
            near = positions[:, :, None] - draft.held[:, None] < self.head.config.window
            committed = committed & near
        own = F.pad(own, (0, self.scratch - own.shape[1]))
        return torch.cat((own.expand(len(committed), -1, -1), committed), -1)[:, None]

    def _visible(self, draft: _Draft, mask: Tensor) -> Tensor:
        """Keys and values [layers,2,B,heads,C,D] of the mask's columns; a view of a single slot."""
        if len(draft.slots) == 1:
            slot = draft.slots[0]
            return self.keys_values[:, :, slot : slot + 1, :, : mask.shape[-1]]
        return self.keys_values[:, :, draft.index, :, : mask.shape[-1]]
