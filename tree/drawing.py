"""A decoding tree as text: a picture for reports and docs, a line for the start-up block."""

from __future__ import annotations

from collections.abc import Mapping

from .topology import RankPath, Tree


def draw(tree: Tree, shares: Mapping[RankPath, float] | None = None) -> str:
    """The tree with one line a node, best child first; numbers are candidate ranks.

    With `shares` each line ends with its path's:

    root
    ├─ 0  0.74
    │  └─ 0  0.55
    └─ 1  0.11
    """
    return "\n".join(["root", *_draw_children(tree, 0, "", shares or {})])


def _draw_children(
    tree: Tree, node: int, indent: str, shares: Mapping[RankPath, float]
) -> list[str]:
    lines = []
    children = tree.children(node)
    for child in children:
        last = child == children[-1]
        share = shares.get(tree.paths[child])
        told = "" if share is None else f"  {share:.2f}"
        lines.append(f"{indent}{'└─' if last else '├─'} {tree.ranks[child]}{told}")
        lines += _draw_children(tree, child, indent + ("   " if last else "│  "), shares)
    return lines


def summarize(tree: Tree) -> str:
    """One line: how many nodes, how deep, how many at each depth."""
    widths = [tree.depths.count(depth) for depth in range(1, tree.max_depth + 1)]
    shape = "-".join(map(str, widths)) or "root only"
    return f"{tree.num_nodes} nodes, depth {tree.max_depth} ({shape})"
