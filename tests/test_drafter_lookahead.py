"""Lookahead decoding: its one tree, the window that moves, the n-grams that come of it."""

from __future__ import annotations

import pytest
import torch

from drafter.config import DrafterError, LookaheadConfig
from drafter.lookahead import MOST_GRAMS, LookaheadDrafter, column_paths, lookahead_tree
from drafter.naming import Naming
from drafter.plan import build_plan
from drafter.protocol import Watcher

SMALL = LookaheadConfig(window=2, ngram=3, guesses=2)
TREE = lookahead_tree(SMALL)


def no_rank(logits: torch.Tensor, naming: Naming) -> torch.Tensor:
    raise AssertionError("nothing is ranked")


def drafted(drafter: LookaheadDrafter, root: int) -> list[int]:
    plan = build_plan(lookahead_tree(drafter.config), drafter.block_size, torch.device("cpu"))
    tokens: list[int] = drafter.draft([0], torch.tensor([root]), plan, no_rank)[0].tolist()
    return tokens


def by_path(drafter: LookaheadDrafter, root: int) -> dict[tuple[int, ...], int]:
    return dict(zip(lookahead_tree(drafter.config).paths, drafted(drafter, root), strict=True))


def read(drafter: LookaheadDrafter, ids: list[int]) -> None:
    drafter.prefill(0, torch.tensor(ids), torch.zeros(len(ids) - 1, 1))


def test_the_tree_is_the_picture() -> None:
    assert set(TREE.paths[1:]) == {
        (0,), (0, 0), (1,), (1, 0),  # two guesses
        (2,), (2, 0), (2, 1), (2, 0, 0),  # w0, w1, x0 beside w1, x1
    }  # fmt: skip
    assert build_plan(TREE, TREE.max_depth, torch.device("cpu")).passes[1:] == ()


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("ngram", [2, 3, 5])
def test_each_column_is_a_run_of_tokens_behind_its_chain(window: int, ngram: int) -> None:
    shape = LookaheadConfig(window=window, ngram=ngram, guesses=3)
    tree = lookahead_tree(shape)
    nodes = {path: node for node, path in enumerate(tree.paths)}
    assert tree.num_nodes == 1 + (window + 3) * (ngram - 1)
    for column, paths in enumerate(column_paths(shape)):
        chain = [nodes[paths[0]] for paths in column_paths(shape)[: column + 1]]
        assert tree.path_to(nodes[paths[-1]]) == (*chain, *(nodes[path] for path in paths[1:]))


def test_ngrams_of_the_text_are_guessed_the_newest_first() -> None:
    drafter = LookaheadDrafter(SMALL, num_slots=1)
    read(drafter, [7, 1, 2, 7, 3, 4, 7, 5, 6, 7])
    assert drafter.lengths == [9]
    found = by_path(drafter, 7)
    assert [found[path] for path in ((0,), (0, 0), (1,), (1, 0))] == [5, 6, 3, 4]
    drafter.extend([0], torch.tensor([[1, 2, 9]]), torch.zeros(1, 3, 1), [2])
    assert drafter.lengths == [11]
    assert by_path(drafter, 7)[0,] == 1  # 7 1 2 has come again
    unknown = by_path(drafter, 8)
    assert [unknown[path] for path in ((), (0,), (1, 0))] == [8, 0, 0]


def test_the_window_moves_up_and_leaves_ngrams() -> None:
    drafter = LookaheadDrafter(SMALL, num_slots=1)
    read(drafter, [20, 21, 22])
    before = by_path(drafter, 22)
    columns = [[before[path] for path in paths] for paths in column_paths(SMALL)]
    picks = [100 + node for node in range(TREE.num_nodes)]
    nodes = {path: node for node, path in enumerate(TREE.paths)}
    said = [picks[nodes[paths[-1]]] for paths in column_paths(SMALL)]
    assert isinstance(drafter, Watcher)
    drafter.watch(0, picks)
    after = by_path(drafter, 22)
    for paths, column, new in zip(column_paths(SMALL), columns, said, strict=True):
        assert [after[path] for path in paths] == [column[1], new]
        guesses = by_path(drafter, column[0])
        assert (column[1], new) in {
            (guesses[(guess,)], guesses[guess, 0]) for guess in range(SMALL.guesses)
        }


def test_a_new_sequence_begins_anew() -> None:
    drafter = LookaheadDrafter(SMALL, num_slots=2)
    read(drafter, [7, 1, 2, 7])
    drafter.rewind(0, 2)
    assert drafter.lengths == [2, 0]
    assert by_path(drafter, 7)[0,] == 1  # may still be right
    drafter.adopt(0, 1, 5)
    assert drafter.lengths == [0, 0]
    assert drafter.num_bytes == 0


def test_memory_is_bounded() -> None:
    drafter = LookaheadDrafter(SMALL, num_slots=1)
    read(drafter, list(range(MOST_GRAMS + 10)))
    assert by_path(drafter, 3)[0,] == 0  # forgotten
    assert by_path(drafter, 100)[0,] == 101


@pytest.mark.parametrize("sizes", [{"window": 0}, {"ngram": 1}, {"guesses": 0}, {"window": 30}])
def test_shapes_that_cannot_be_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(DrafterError, match=next(iter(sizes))):
        LookaheadConfig(**sizes)
