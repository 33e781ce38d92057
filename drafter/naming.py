"""How the nodes of a tree get their tokens: by which rows of draft logits and which candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tree.tables import DraftPass
from tree.topology import Tree

from .index import Index, index_of


@dataclass(frozen=True, slots=True)
class Family:
    """A node, its children, best rank first, and which row of a naming's [E*L] names them."""

    parent: int
    children: tuple[int, ...]
    row: int


@dataclass(frozen=True, slots=True)
class Naming:
    """How nodes get their tokens from draft logits [B,E,L,V]: E rows of L levels, from `depth` on.

    `nodes` take the `candidates` of a flat [E, L, width]; all namings of a tree have one `width`.
    `families` tell for each node's children which row of a flat [E, L] names them, parents before
    their children's own. A later naming goes on from the nodes `onward`; with this one `share` of
    the levels of pass `number` are named.
    """

    number: int
    share: float
    depth: int
    nodes: Index
    candidates: Index
    width: int
    families: tuple[Family, ...]
    onward: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SlotTables:
    """One slot of a pass, where each is told the block's root and what was named since.

    There is a row for each of the P nodes that slot s names children of. `told` [P*(s+1)] are the
    nodes whose tokens it is told, row by row: its node and those above in the block, newest first.
    `rows` [P] are the rows' own of the pass's [E*K], `ends` [P] those of their blocks' ends. For
    K=2, the picture of `tree/tables.py`:

        slot   names   told      rows   ends
           0     1 3   0            0      1
           1     2 4   1 0, 3 0   1 1    1 1
    """

    naming: Naming
    told: Index
    rows: Index
    ends: Index


def whole_naming(
    tree: Tree, number: int, one: DraftPass, block_size: int, device: torch.device
) -> Naming:
    """All nodes of pass `number` at once."""
    rows = {
        node: block * block_size + slot
        for node, block, slot in zip(one.nodes, one.node_blocks, one.node_slots, strict=True)
    }
    return _naming(tree, number, number * block_size + 1, rows, 1.0, device)


def slot_tables(
    tree: Tree, number: int, one: DraftPass, block_size: int, device: torch.device
) -> tuple[SlotTables, ...]:
    """The slots of pass `number`, as many as name nodes."""
    blocks = dict(zip(one.nodes, one.node_blocks, strict=True))
    slots: list[SlotTables] = []
    by_slot = slot_parents(tree, one)
    for slot, parents in enumerate(by_slot):
        rows = {child: row for row, p in enumerate(parents) for child in tree.children(p)}
        depth = number * block_size + slot + 1
        share = (slot + 1) / len(by_slot)
        firsts = [blocks[tree.children(parent)[0]] * block_size for parent in parents]
        told = [node for parent in parents for node in (0, *tree.path_to(parent))[: -slot - 2 : -1]]
        slots.append(
            SlotTables(
                naming=_naming(tree, number, depth, rows, share, device),
                told=index_of(told, device),
                rows=index_of([first + slot for first in firsts], device),
                ends=index_of([first + block_size - 1 for first in firsts], device),
            )
        )
    return tuple(slots)


def slot_parents(tree: Tree, one: DraftPass) -> list[list[int]]:
    """The nodes whose children each slot of a pass names, by slot."""
    slots: list[set[int]] = [set() for _ in range(max(one.node_slots) + 1)]
    for node, slot in zip(one.nodes, one.node_slots, strict=True):
        slots[slot].add(tree.parents[node])
    return [sorted(parents) for parents in slots]


def _naming(
    tree: Tree,
    number: int,
    depth: int,
    rows: Mapping[int, int],
    share: float,
    device: torch.device,
) -> Naming:
    """Of the nodes in `rows`, which gives the row of a flat [E, L] that names each."""
    nodes, width = sorted(rows), max(tree.ranks) + 1
    parents = {tree.parents[node]: rows[node] for node in nodes}
    return Naming(
        number=number,
        share=share,
        depth=depth,
        nodes=index_of(nodes, device),
        candidates=index_of([rows[node] * width + tree.ranks[node] for node in nodes], device),
        width=width,
        families=tuple(Family(p, tree.children(p), parents[p]) for p in sorted(parents)),
        onward=tuple(node for node in nodes if tree.children(node) and node not in parents),
    )
