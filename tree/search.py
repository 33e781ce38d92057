"""The best tree of every size, from the share of steps in which each path was right.

A node of the tree gives a token in the steps in which its whole path is right. These shares add up
over nodes, so a dynamic programme finds the best nodes, each with all its better-ranked siblings:

    below(path)    the best 0, 1, 2, ... nodes below a node
    beside(path)   the best among a node, its worse-ranked siblings, and all below them

    path ──┬─ 0 ──┬─ 0        beside((0,)) = below((0,)) beside beside((1,))
           └─ 1   └─ 1        below((0,))  = beside((0, 0))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .topology import RankPath, Tree

Nodes = tuple[RankPath, "Nodes", "Nodes"] | None  # a path, what was chosen below and beside it
Forest = tuple[float, Nodes]  # tokens a step, less what they are charged

EMPTY: Forest = (0.0, None)


@dataclass(frozen=True, slots=True)
class Limits:
    """What trees may be: of `nodes` nodes with the root, and `depth` levels, `block_size` levels
    to a drafter pass.
    """

    nodes: int
    depth: int
    block_size: int


def best_trees(shares: Mapping[RankPath, float], limits: Limits, price: float = 0.0) -> list[Tree]:
    """The best tree of 1, 2, 3, ... nodes with the root, as far as `shares` and `limits` go.

    `price` is what each block behind the first pass is charged, in tokens a step: the nodes that
    make the drafter read one more block have to bring more.
    """
    size = limits.nodes - 1

    def below(path: RankPath) -> list[Forest]:
        if len(path) == limits.depth:
            return [EMPTY]
        found = beside((*path, 0))
        if not path or len(path) % limits.block_size:
            return found
        return [EMPTY, *((value - price, nodes) for value, nodes in found[1:])]

    def beside(path: RankPath) -> list[Forest]:
        share = shares.get(path, 0.0)
        if share == 0.0:
            return [EMPTY]
        own, others = below(path), beside((*path[:-1], path[-1] + 1))
        found = [EMPTY]
        for more in range(min(size, len(own) + len(others) - 1)):
            splits = range(max(0, more + 1 - len(others)), min(more + 1, len(own)))
            best = max(splits, key=lambda n: own[n][0] + others[more - n][0])
            (value, under), (rest, next_to) = own[best], others[more - best]
            found.append((share + value + rest, (path, under, next_to)))
        return found

    return [Tree.from_paths(_paths(nodes)) for _, nodes in below(())]


def _paths(nodes: Nodes) -> list[RankPath]:
    found: list[RankPath] = []
    waiting = [nodes]
    while waiting:
        if (one := waiting.pop()) is not None:
            path, below, beside = one
            found.append(path)
            waiting += [below, beside]
    return found
