"""The tree that is expected to accept the most tokens, from measured acceptance.

A node is reached when every candidate on its path is what the target picks; with acceptance
measured per (depth, rank) that is a product. Where rates fall with rank, growing the likeliest node
first is optimal for every number of nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import prod

from .topology import RankPath, Tree

Acceptance = Sequence[Sequence[float]]  # [depth - 1][rank]: chance that this candidate is picked


def grow(acceptance: Acceptance, num_nodes: int) -> Tree:
    """The best tree of at most `num_nodes` nodes with the root, no deeper than `acceptance`."""
    chosen: list[RankPath] = []
    heap: list[tuple[float, RankPath]] = []

    def offer(path: RankPath) -> None:
        if len(path) <= len(acceptance) and path[-1] < len(acceptance[len(path) - 1]):
            heapq.heappush(heap, (-reach(acceptance, path), path))

    offer((0,))
    while heap and len(chosen) < num_nodes - 1:
        score, path = heapq.heappop(heap)
        if score == 0.0:
            break
        chosen.append(path)
        offer((*path, 0))
        offer((*path[:-1], path[-1] + 1))
    return Tree.from_paths(chosen)


def reach(acceptance: Acceptance, path: RankPath) -> float:
    """Chance that the path is accepted down to its last node."""
    return prod(acceptance[depth][rank] for depth, rank in enumerate(path))


def expected_accept_length(acceptance: Acceptance, tree: Tree) -> float:
    """tau_0 that the acceptance predicts for the tree."""
    return sum(reach(acceptance, path) for path in tree.paths[1:])
