"""The lookup finds its way back into the known text, and learns how far to trust it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.lookup import Lookup
from engine.predicted_text import FIRST_CHANCES, NEARBY, PredictedText

TEXT = list(range(100, 160))
TOKENS = st.lists(st.integers(0, 5), max_size=60)


def lookup(output: list[int], known: list[int] = TEXT) -> Lookup:
    found = Lookup(PredictedText(known))
    found.extend(output)
    return found


def after(output: list[int], known: list[int] = TEXT, count: int = 4) -> list[int]:
    return lookup(output, known).propose([], count).tokens


def test_the_output_is_expected_to_begin_as_the_known_text_does() -> None:
    assert after([]) == TEXT[:4]


def test_what_comes_next_is_proposed_while_the_output_follows() -> None:
    for length in range(len(TEXT) + 1):
        assert after(TEXT[:length]) == TEXT[length : length + 4]


@pytest.mark.parametrize("gone", [1, 3, NEARBY - 1])
def test_one_token_finds_the_place_behind_a_few_that_were_left_out(gone: int) -> None:
    assert after([*TEXT[:10], TEXT[10 + gone]]) == TEXT[11 + gone : 15 + gone]


def test_two_tokens_find_the_place_behind_many_that_were_left_out() -> None:
    output = [*TEXT[:10], TEXT[40]]
    assert after(output) != TEXT[41:45]
    assert after([*output, TEXT[41]]) == TEXT[42:46]


@pytest.mark.parametrize("new", [[1], [1, 2, 3], list(range(50))])
def test_tokens_that_were_put_in_are_read_over(new: list[int]) -> None:
    assert after([*TEXT[:10], *new, TEXT[10], TEXT[11]]) == TEXT[12:16]


def test_a_token_that_was_replaced_is_skipped_at_once() -> None:
    assert after([*TEXT[:10], 1]) == TEXT[11:15]
    assert after([*TEXT[:10], 1, *TEXT[11:20], 1]) == TEXT[21:25]


def test_far_behind_the_place_that_was_left_nothing_is_proposed() -> None:
    assert after([*TEXT[:10], *([1] * (NEARBY + 1))]) == []


def test_a_passage_that_was_moved_is_found_behind_the_place_too() -> None:
    assert after([*TEXT[30:40], *TEXT[5:7]]) == TEXT[7:11]


def test_of_repeated_lines_the_longest_agreement_decides() -> None:
    known = [1, 2, 3, 11, 7, 2, 3, 22, 5, 2, 3, 33]
    assert after([9, 7, 2, 3], known, 1) == [22]
    assert after([9, 5, 2, 3], known, 1) == [33]


def test_of_equal_agreements_the_nearest_ahead_is_taken() -> None:
    line = [1, 2, 3]
    known = [*line, 10, *line, 20, *line, 30]
    assert after([*line, 10, 9, 9, 2, 3], known, 1) == [20]
    assert after([*line, 10, *line, 20, 9, 9, 2, 3], known, 1) == [30]
    assert after([*line, 10, *line, 20, *line, 30, 9, 9, 2, 3], known, 1) == [30]


@pytest.mark.parametrize("known", [[], [1], [1, 2]])
def test_the_shortest_texts_are_followed_to_their_end(known: list[int]) -> None:
    assert after(known, known) == []
    assert after([5, 6, 7], known) == []


def test_tokens_ahead_move_the_place_for_once_and_teach_nothing() -> None:
    found = lookup(TEXT[:10])
    before = found.propose([], 8)
    assert found.propose([*TEXT[10:12], 1, *TEXT[13:15]], 4).tokens == TEXT[15:19]
    assert found.propose([], 8) == before


def test_trust_grows_with_the_run_and_with_what_came_true() -> None:
    short, long = lookup(TEXT[:1]).propose([], 8), lookup(TEXT[:30]).propose([], 8)
    assert short.expected[-1] < long.expected[-1] < 8
    assert long.expected[-1] > sum(FIRST_CHANCES[-1] ** n for n in range(1, 9))


def test_a_text_that_always_misleads_is_trusted_no_more() -> None:
    """Every pair of tokens is found, and what follows it there never comes."""
    known = [token for i in range(30) for token in (2 * i, 2 * i + 1, 999)]
    output = [token for i in range(30) for token in (2 * i, 2 * i + 1, 1000)]
    trust = [lookup(output[: 3 * n + 2], known).propose([], 8).expected[-1] for n in (1, 10, 29)]
    assert trust[0] > trust[1] > trust[2]
    assert trust[2] < 0.2


@given(TOKENS, TOKENS, st.integers(-1, 40), TOKENS)
def test_proposals_are_stretches_of_the_known_text_however_the_output_comes(
    known: list[int], output: list[int], limit: int, ahead: list[int]
) -> None:
    whole, one_by_one = lookup(output, known), Lookup(PredictedText(known))
    for token in output:
        one_by_one.extend([token])
    proposal = whole.propose(ahead, limit)
    assert proposal == one_by_one.propose(ahead, limit)
    size = len(proposal.tokens)
    assert size <= max(0, limit)
    assert any(known[at : at + size] == proposal.tokens for at in range(len(known) + 1))
    steps = [b - a for a, b in pairwise(proposal.expected)]
    assert len(proposal.expected) == size + 1
    assert all(0 < later <= earlier <= 1 for earlier, later in pairwise(steps))
    unlearnt = lookup(output, known)
    unlearnt.extend(ahead)
    assert unlearnt.propose([], limit).tokens == proposal.tokens
