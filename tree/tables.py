"""Index tables made from a tree: what the verify pass and each drafter pass look up.

    tree          tree_mask (row sees column)     position_offsets
    0 ── 1 ── 2       1 . . . .                    0
    └─── 3 ── 4       1 1 . . .                    1
                      1 1 1 . .                    2
                      1 . . 1 .                    1
                      1 . . 1 1                    2

A drafter pass reads one block per expanded node, the last K tokens on the way to it, and names
the tokens of the next K levels below it. With K=2 the tree above takes one pass: block `0` (the
root) names nodes 1 and 3 from slot 0, nodes 2 and 4 from slot 1. A node 5 below 2 would take a
second pass with the block (1, 2).
"""

from __future__ import annotations

from dataclasses import dataclass

from .topology import Tree

Row = tuple[int, ...]
BoolRow = tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class DraftPass:
    """One drafter pass: E blocks of K rows go in, M nodes get their tokens.

    `blocks` [E] the node that each block ends in (the root in the first pass).
    `block_nodes` [E][K] the nodes whose tokens are the block's rows; empty in the first pass,
    whose one block is the newest K committed positions.
    `parent_blocks` [E] index of the parent's block in the pass before; empty in the first pass.
    `nodes` [M] named by this pass, from the candidates of rank `node_ranks` [M] of slot
    `node_slots` [M] of block `node_blocks` [M].
    `row_mask` [E*K][R] which of the R draft rows so far (this pass's last) each row sees.
    """

    blocks: Row
    block_nodes: tuple[Row, ...]
    parent_blocks: Row
    nodes: Row
    node_blocks: Row
    node_slots: Row
    node_ranks: Row
    row_mask: tuple[BoolRow, ...]


def tree_mask(tree: Tree) -> tuple[BoolRow, ...]:
    """[N][N], true where the row's node sees the column's: its ancestors and itself."""
    rows = []
    for node in range(tree.num_nodes):
        seen = {0, *tree.path_to(node)}
        rows.append(tuple(column in seen for column in range(tree.num_nodes)))
    return tuple(rows)


def draft_passes(tree: Tree, block_size: int) -> tuple[DraftPass, ...]:
    """The passes that name every node of the tree, for K = `block_size` >= 1.

    There are ceil(D / K) of them; a tree of the root alone has none.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    passes: list[DraftPass] = []
    while len(passes) * block_size < tree.max_depth:
        passes.append(_next_pass(tree, block_size, passes))
    return tuple(passes)


def count_blocks(tree: Tree, block_size: int) -> Row:
    """How many blocks each of `draft_passes` reads."""
    tops = range(0, tree.max_depth, block_size)
    return tuple(len({path[:top] for path in tree.paths if len(path) > top}) for top in tops)


def _next_pass(tree: Tree, block_size: int, done: list[DraftPass]) -> DraftPass:
    top = len(done) * block_size
    nodes = [n for n, depth in enumerate(tree.depths) if top < depth <= top + block_size]
    block_of = {n: (0, *tree.path_to(n))[top] for n in nodes}
    blocks = sorted(set(block_of.values()))
    first = not done
    return DraftPass(
        blocks=tuple(blocks),
        block_nodes=() if first else tuple(tree.path_to(b)[-block_size:] for b in blocks),
        parent_blocks=() if first else _parent_blocks(tree, blocks, block_size, done[-1]),
        nodes=tuple(nodes),
        node_blocks=tuple(blocks.index(block_of[n]) for n in nodes),
        node_slots=tuple(tree.depths[n] - top - 1 for n in nodes),
        node_ranks=tuple(tree.ranks[n] for n in nodes),
        row_mask=() if first else _row_mask(tree, blocks, block_size, done),
    )


def _parent_blocks(tree: Tree, blocks: list[int], block_size: int, above: DraftPass) -> Row:
    return tuple(above.blocks.index((0, *tree.path_to(b))[-1 - block_size]) for b in blocks)


def _row_mask(
    tree: Tree, blocks: list[int], block_size: int, done: list[DraftPass]
) -> tuple[BoolRow, ...]:
    columns = [b for above in done[1:] for b in above.blocks] + blocks
    rows: list[BoolRow] = []
    for block in blocks:
        path = tree.path_to(block)
        row = tuple(column in path for column in columns for _ in range(block_size))
        rows += [row] * block_size
    return tuple(rows)
