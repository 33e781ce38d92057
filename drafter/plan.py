"""A tree made ready for drafting: which rows each pass has, what they see and what they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tree.drawing import summarize
from tree.tables import DraftPass, draft_passes
from tree.topology import Tree

from .config import DrafterError, Dynamic
from .index import Index, index_of
from .model import MAX_FED_BACK
from .naming import Naming, SlotTables, slot_parents, slot_tables, whole_naming

LEAST_DYNAMIC = 2  # nodes that a dynamic draft verifies, however many tokens are provisional


@dataclass(frozen=True, slots=True)
class PassTables:
    """A `DraftPass` ready on the device; its blocks are `rows` of the draft.

    `block_nodes` are the nodes of E blocks of K. `sources` [E*K] are the rows of the pass before
    that named them, of its [E*K]; `told_sources` the same of the rows of all its slots, one after
    the other. `whole` names all levels at once, `by_slot` in turn. Where each of these names the
    children of one node, `path` leads from the root to the last such node.
    """

    rows: slice
    block_nodes: Index
    parent_blocks: Index
    sources: Index
    told_sources: Index
    whole: Naming
    by_slot: tuple[SlotTables, ...]
    path: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class DraftPlan:
    """A tree and the passes that fill it, ready on the device.

    With `dynamic` the tree holds the nodes that a draft may have, else those that it does have.
    `blocks` [m] is how many blocks each pass reads. A draft has K rows of the root pass and R =
    `num_rows` block rows of the later ones, in this order. `offsets` [K+R] are their positions from
    that of the first. With a chain of blocks all rows `see_all` of their pass and those before;
    in other trees `bias` [K+R,R] is 0 where a row sees a block row, else -inf; the columns are
    those of the newest pass first, so that what stands when a pass runs is always one slice. For
    K=2, a first block, and two below it:

        offset  row         column  4  5  6  7  2  3
           0     0  root            .  .  .  .  .  .
           1     1                  .  .  .  .  .  .
           2     2  block           .  .  .  .  0  0
           3     3                  .  .  .  .  0  0
           4     4  block below     0  0  .  .  0  0
           5     5                  0  0  .  .  0  0
           4     6  block below     .  .  0  0  0  0
           5     7                  .  .  0  0  0  0
    """

    tree: Tree
    dynamic: Dynamic | None
    blocks: tuple[int, ...]
    passes: tuple[PassTables, ...]
    num_rows: int
    offsets: Tensor
    see_all: bool
    bias: Tensor

    @property
    def num_verified(self) -> int:
        """The most nodes that are verified, the root too."""
        nodes = self.tree.num_nodes
        return nodes if self.dynamic is None else min(self.dynamic.num_verified, nodes)

    @property
    def summary(self) -> str:
        """What it drafts, for people."""
        return f"{shape(self.tree, self.dynamic)}, {len(self.passes)} passes"

    def num_beside(self, provisional: int) -> int:
        """The most nodes that are verified beside so many provisional tokens, the root too."""
        nodes = self.tree.num_nodes
        if self.dynamic is None:
            return nodes
        return min(nodes, max(LEAST_DYNAMIC, self.dynamic.num_verified - provisional))


def shape(tree: Tree, dynamic: Dynamic | None) -> str:
    """Of a draft, for people."""
    if dynamic is None:
        return summarize(tree)
    return f"up to {dynamic.num_verified} of {summarize(tree)}, trust {dynamic.least_trust:g}"


def build_plan(
    tree: Tree, block_size: int, device: torch.device, dynamic: Dynamic | None = None
) -> DraftPlan:
    """Tensors for a tree.

    A tree of the root alone makes a plan without passes. Raises `DrafterError` for a tree deeper
    than a step can feed back.
    """
    if tree.max_depth >= MAX_FED_BACK:
        raise DrafterError(f"a tree of depth {tree.max_depth}; at most {MAX_FED_BACK - 1}")
    passes = draft_passes(tree, block_size)
    tables: list[PassTables] = []
    offsets: list[int] = []
    for number, one in enumerate(passes):
        before = passes[number - 1] if number else None
        tables.append(_pass_tables(tree, number, one, before, block_size, len(offsets), device))
        offsets += [number * block_size + slot for _ in one.blocks for slot in range(block_size)]
    return DraftPlan(
        tree=tree,
        dynamic=dynamic,
        blocks=tuple(len(one.blocks) for one in passes),
        passes=tuple(tables),
        num_rows=max(0, len(offsets) - block_size),
        offsets=torch.tensor(offsets, dtype=torch.long, device=device),
        see_all=all(len(one.blocks) == 1 for one in passes[1:]),
        bias=_row_bias(passes, block_size).to(device),
    )


def _pass_tables(
    tree: Tree,
    number: int,
    one: DraftPass,
    before: DraftPass | None,
    block_size: int,
    row: int,
    device: torch.device,
) -> PassTables:
    block_nodes = [node for block in one.block_nodes for node in block]
    by_slot = slot_parents(tree, one)
    sources: list[int] = []
    told_sources: list[int] = []
    if before is not None:
        sources = [
            block * block_size + slot for block in one.parent_blocks for slot in range(block_size)
        ]
        rows = [parent for parents in slot_parents(tree, before) for parent in parents]
        told_sources = [rows.index(tree.parents[node]) for node in block_nodes]
    return PassTables(
        rows=slice(row, row + len(one.blocks) * block_size),
        block_nodes=index_of(block_nodes, device),
        parent_blocks=index_of(one.parent_blocks, device),
        sources=index_of(sources, device),
        told_sources=index_of(told_sources, device),
        whole=whole_naming(tree, number, one, block_size, device),
        by_slot=slot_tables(tree, number, one, block_size, device),
        path=(0, *tree.path_to(by_slot[-1][0])) if all(len(p) == 1 for p in by_slot) else None,
    )


def _row_bias(passes: Sequence[DraftPass], block_size: int) -> Tensor:
    """`DraftPlan.bias`: [K+R,R] float32."""
    counts = [len(one.blocks) * block_size for one in passes[1:]]
    bias = torch.full((block_size + sum(counts), sum(counts)), -torch.inf)
    row = block_size
    for number, one in enumerate(passes[1:], start=1):
        by_pass = torch.split(torch.tensor(one.row_mask), counts[:number], dim=1)
        is_seen = torch.cat(by_pass[::-1], dim=1)  # [E*K, rows so far]
        bias[row : row + len(is_seen), -is_seen.shape[1] :][is_seen] = 0
        row += len(is_seen)
    return bias
