"""Decoding played again: steps, tokens and what has to be verified twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tree import trees

from tree.replay import followed, replay, shares
from tree.topology import ROOT_ONLY, Tree

RECORD = [(0, 1), (1, 0, 0), (), (0,)]  # the one in the docstring
TREE = Tree.from_paths([[0], [0, 0], [1]])

records = st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), min_size=1, max_size=20)


def test_the_picture_takes_three_steps() -> None:
    found = replay(TREE, [RECORD], max_provisional=0)
    assert (found.tokens, found.steps) == (4, 3)
    assert found.roots == Counter({(0, 1): 1, (): 1, (0,): 1})
    assert found.tau == pytest.approx(4 / 3)


def test_plain_decoding_has_a_root_at_every_place() -> None:
    found = replay(ROOT_ONLY, [RECORD, RECORD], max_provisional=3)
    assert (found.tokens, found.steps) == (8, 8)
    assert found.roots == Counter(2 * RECORD)


def test_tokens_off_the_chain_stand_in_front_of_the_next_tree() -> None:
    """Place 0: token 0 is a second choice, so the token behind it is verified in the next step."""
    tree = Tree.from_paths([[0], [1], [1, 0]])
    record, nodes = [(1, 0), (), (), ()], tree.num_nodes
    twice = replay(tree, [record], max_provisional=2)
    assert (twice.steps, twice.rows) == (2, Counter({nodes: 1, nodes + 2: 1}))
    once = replay(tree, [record], max_provisional=1)
    assert (once.steps, once.rows) == (3, Counter({nodes: 2, nodes + 1: 1}))
    assert replay(tree, [record], max_provisional=0).steps == 4


def test_an_answer_that_ends_off_the_chain_takes_one_step_more() -> None:
    tree = Tree.from_paths([[0], [1]])
    assert replay(tree, [[(0,), ()]], max_provisional=1).steps == 1
    assert replay(tree, [[(1,), ()]], max_provisional=1).steps == 2


@given(trees(), st.lists(records, min_size=1, max_size=3))
def test_no_tree_takes_more_steps_than_plain_decoding(tree: Tree, texts: list) -> None:  # type: ignore[type-arg]  # hypothesis
    tokens = sum(map(len, texts))
    for again in (0, 1, 2):
        found = replay(tree, texts, again)
        assert found.tokens == tokens
        assert len(texts) <= found.steps <= tokens


@given(trees(), records)
def test_shares_are_those_of_the_accepted_nodes(tree: Tree, record: list) -> None:  # type: ignore[type-arg]  # hypothesis
    found = replay(tree, [record], max_provisional=2)
    nodes = set(tree.paths)
    counted = shares(found.roots)
    accepted = sum(len(followed(nodes, ranks)) * n for ranks, n in found.roots.items())
    total = sum(counted.get(path, 0.0) for path in tree.paths[1:])
    assert total == pytest.approx(accepted / found.steps)
