"""A decoding tree as text: a picture for reports and docs, a line for the start-up block."""

from __future__ import annotations

from .topology import Tree


def draw(tree: Tree) -> str:
    """The tree with one line a node, best child first; numbers are candidate ranks.

    root
    ├─ 0
    │  └─ 0
    └─ 1
    """
    return "\n".join(["root", *_draw_children(tree, 0, "")])


def _draw_children(tree: Tree, node: int, indent: str) -> list[str]:
    lines = []
    children = tree.children(node)
    for child in children:
        last = child == children[-1]
        lines.append(f"{indent}{'└─' if last else '├─'} {tree.ranks[child]}")
        lines += _draw_children(tree, child, indent + ("   " if last else "│  "))
    return lines


def summarize(tree: Tree) -> str:
    """One line: how many nodes, how deep, how many at each depth."""
    widths = [tree.depths.count(depth) for depth in range(1, tree.max_depth + 1)]
    shape = "-".join(map(str, widths)) or "root only"
    return f"{tree.num_nodes} nodes, depth {tree.max_depth} ({shape})"
