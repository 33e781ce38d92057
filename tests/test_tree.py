"""Trees, their tables and drawings, on hand-made and on random legal trees."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tree.drawing import draw, summarize
from tree.tables import count_blocks, draft_passes, tree_mask
from tree.topology import MAX_NODES, ROOT_ONLY, Tree, TreeError

PICTURE = Tree.from_paths([[0], [0, 0], [1], [1, 0]])  # the tree in the docstrings


@st.composite
def trees(draw_value: st.DrawFn) -> Tree:
    """Any legal tree: repeatedly give some node one more child."""
    paths: list[tuple[int, ...]] = [()]
    children = {(): 0}
    for _ in range(draw_value(st.integers(0, 40))):
        parent = draw_value(st.sampled_from(paths))
        path = (*parent, children[parent])
        children[parent] += 1
        children[path] = 0
        paths.append(path)
    shuffled = draw_value(st.permutations(paths[1:]))
    return Tree.from_paths(shuffled)


@given(trees())
def test_nodes_on_a_path_ascend_and_parents_come_first(tree: Tree) -> None:
    for node in range(1, tree.num_nodes):
        assert tree.parents[node] < node
        path = tree.path_to(node)
        assert list(path) == sorted(path)
        assert tuple(tree.ranks[n] for n in path) == tree.paths[node]
        assert tree.depths[node] == len(path)


@given(trees())
def test_top_1_chain_stands_first(tree: Tree) -> None:
    chain = [path for path in tree.paths if not any(path)]
    assert [len(path) for path in tree.paths[: len(chain)]] == list(range(len(chain)))


@given(trees(), st.integers(0, 20))
def test_below_a_chain_every_node_keeps_its_order_and_its_parent(tree: Tree, length: int) -> None:
    moved = tree.below_chain(length)
    assert moved.parents[: length + 1] == (-1, *range(length))
    assert moved.parents[length + 1 :] == tuple(length + p for p in tree.parents[1:])
    assert moved.ranks[length + 1 :] == tree.ranks[1:]
    assert moved.max_branch == tree.max_branch


@given(trees())
def test_longest_branch_counts_the_nodes_off_the_chain(tree: Tree) -> None:
    chain = {n for n, path in enumerate(tree.paths) if not any(path)}
    off = [sum(n not in chain for n in tree.path_to(node)) for node in range(tree.num_nodes)]
    assert tree.max_branch == max(off)


@given(trees())
def test_json_form_gives_the_same_tree_back(tree: Tree) -> None:
    assert Tree.from_json(json.loads(json.dumps(tree.to_json()))) == tree


@given(trees())
def test_a_node_sees_exactly_its_ancestors_and_itself(tree: Tree) -> None:
    for node, row in enumerate(tree_mask(tree)):
        ancestors = {tree.paths[node][:length] for length in range(len(tree.paths[node]) + 1)}
        assert {tree.paths[n] for n, seen in enumerate(row) if seen} == ancestors


@given(trees(), st.integers(1, 4))
def test_passes_name_every_node_once_from_the_block_above_it(tree: Tree, block_size: int) -> None:
    passes = draft_passes(tree, block_size)
    assert len(passes) == -(-tree.max_depth // block_size)
    named = [node for one in passes for node in one.nodes]
    assert sorted(named) == list(range(1, tree.num_nodes))
    for number, one in enumerate(passes):
        top = number * block_size
        for node, block, slot, rank in zip(
            one.nodes, one.node_blocks, one.node_slots, one.node_ranks, strict=True
        ):
            assert tree.paths[node][:top] == tree.paths[one.blocks[block]]
            assert slot == tree.depths[node] - top - 1
            assert rank == tree.paths[node][-1]


@given(trees(), st.integers(1, 4))
def test_blocks_are_counted_as_they_are_read(tree: Tree, block_size: int) -> None:
    passes = draft_passes(tree, block_size)
    assert count_blocks(tree, block_size) == tuple(len(one.blocks) for one in passes)


@given(trees(), st.integers(1, 4))
def test_blocks_hold_the_tokens_that_were_named_before_them(tree: Tree, block_size: int) -> None:
    known: set[int] = set()
    before = None
    for one in draft_passes(tree, block_size):
        for block, nodes in enumerate(one.block_nodes):
            assert nodes == tree.path_to(one.blocks[block])[-block_size:]
            assert set(nodes) <= known
            assert before is not None
            parent = before.blocks[one.parent_blocks[block]]
            assert tree.paths[one.blocks[block]][:-block_size] == tree.paths[parent]
        known |= set(one.nodes)
        before = one


@given(trees(), st.integers(1, 4))
def test_block_rows_see_their_own_block_and_its_ancestors_only(tree: Tree, block_size: int) -> None:
    passes = draft_passes(tree, block_size)
    columns: list[int] = []
    for one in passes[1:]:
        columns += [block for block in one.blocks for _ in range(block_size)]
        for row, mask in enumerate(one.row_mask):
            own = tree.paths[one.blocks[row // block_size]]
            seen = {tree.paths[column] for column, bit in zip(columns, mask, strict=True) if bit}
            assert seen == {own[:end] for end in range(block_size, len(own) + 1, block_size)}


def test_tables_of_the_picture() -> None:
    assert PICTURE.paths == ((), (0,), (0, 0), (1,), (1, 0))
    assert PICTURE.parents == (-1, 0, 1, 0, 3)
    assert PICTURE.depths == (0, 1, 2, 1, 2)
    picture = ["1....", "11...", "111..", "1..1.", "1..11"]
    rows = ["".join("1" if bit else "." for bit in row) for row in tree_mask(PICTURE)]
    assert rows == picture
    (only,) = draft_passes(PICTURE, 2)
    assert (only.nodes, only.node_slots) == ((1, 2, 3, 4), (0, 1, 0, 1))
    deeper = Tree.from_paths([*PICTURE.paths[1:], (0, 0, 0)])
    node = deeper.paths.index((0, 0))
    assert draft_passes(deeper, 2)[1].block_nodes == (deeper.path_to(node),)


def test_chain_of_a_tree_is_its_best_path_alone() -> None:
    assert PICTURE.chain().paths == ((), (0,), (0, 0))
    assert ROOT_ONLY.chain() == ROOT_ONLY


def test_drawing_shows_one_line_a_node() -> None:
    tree = Tree.from_paths([[0], [0, 0], [1]])
    assert draw(tree) == "root\n├─ 0\n│  └─ 0\n└─ 1"
    shares = {(0,): 0.741, (0, 0): 0.5}
    assert draw(tree, shares) == "root\n├─ 0  0.74\n│  └─ 0  0.50\n└─ 1"
    assert summarize(tree) == "4 nodes, depth 2 (2-1)"
    assert summarize(ROOT_ONLY) == "1 nodes, depth 0 (root only)"


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        ([[0], [0]], "duplicate path"),
        ([[0, 0]], "no parent"),
        ([[1]], "rank 0 is missing"),
        ([[0], [2]], "rank 1 is missing"),
        ([[0], [-1]], "whole numbers"),
        ([[]], "at least one rank"),
        ([[True]], "whole numbers"),
        ([[rank] for rank in range(MAX_NODES)], f"more than {MAX_NODES}"),
    ],
)
def test_an_illegal_tree_is_refused(paths: list[list[int]], complaint: str) -> None:
    with pytest.raises(TreeError, match=complaint):
        Tree.from_paths(paths)


@pytest.mark.parametrize("document", [[], {}, {"paths": 3}, {"paths": [0]}, {"paths": [["0"]]}])
def test_json_of_another_shape_is_refused(document: object) -> None:
    with pytest.raises(TreeError):
        Tree.from_json(document)


def test_block_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        draft_passes(PICTURE, 0)
