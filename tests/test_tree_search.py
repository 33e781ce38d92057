"""The search finds the best tree of every size: compared with all the trees there are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tree.search import Limits, best_trees
from tree.tables import count_blocks
from tree.topology import ROOT_ONLY, RankPath, Tree

RANKS, DEPTH, NODES = 3, 3, 5
PATHS = [
    path
    for first in range(RANKS)
    for path in [(first,), *((first, second) for second in range(RANKS)), (first, 0, 0)]
]


def all_trees(num_nodes: int) -> list[Tree]:
    """Every legal tree of so many nodes below the root, over `PATHS`."""
    found: set[frozenset[RankPath]] = {frozenset()}
    for _ in range(num_nodes):
        found = {
            paths | {path}
            for paths in found
            for path in set(PATHS) - paths
            if path[:-1] in {(), *paths} and (path[-1] == 0 or (*path[:-1], path[-1] - 1) in paths)
        }
    return [Tree.from_paths(paths) for paths in found]


ALL_TREES = [all_trees(num_nodes) for num_nodes in range(NODES)]


def value(tree: Tree, shares: dict[RankPath, float], block_size: int, price: float) -> float:
    blocks = sum(count_blocks(tree, block_size)[1:])
    return sum(shares[path] for path in tree.paths[1:]) - price * blocks


@settings(max_examples=30)
@given(
    st.lists(st.floats(0.01, 1.0), min_size=len(PATHS), max_size=len(PATHS)),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3]),
)
def test_no_tree_of_the_same_size_is_better(
    chances: list[float], block_size: int, price: float
) -> None:
    shares = dict(zip(PATHS, chances, strict=True))
    found = best_trees(shares, Limits(NODES, DEPTH, block_size), price)
    assert [tree.num_nodes for tree in found] == list(range(1, NODES + 1))
    for trees, best in zip(ALL_TREES, found, strict=True):
        most = max(value(tree, shares, block_size, price) for tree in trees)
        assert abs(value(best, shares, block_size, price) - most) < 1e-9


def test_what_was_never_right_is_left_out_and_limits_are_kept() -> None:
    shares = {(0,): 0.5, (0, 0): 0.2, (0, 0, 0): 0.1}
    assert [t.num_nodes for t in best_trees(shares, Limits(9, 9, 2))] == [1, 2, 3, 4]
    assert best_trees(shares, Limits(9, 2, 2))[-1].max_depth == 2
    assert best_trees({}, Limits(9, 9, 2)) == [ROOT_ONLY]


def test_a_dear_block_is_left_for_nodes_that_need_none() -> None:
    shares = {(0,): 0.5, (0, 0): 0.2, (1,): 0.15}
    assert best_trees(shares, Limits(3, 2, 1))[-1].paths == ((), (0,), (0, 0))
    assert best_trees(shares, Limits(3, 2, 1), price=0.1)[-1].paths == ((), (0,), (1,))
