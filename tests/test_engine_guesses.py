"""Guesses of what is named next: the newest successors of n-grams in a text and its drafts."""

from __future__ import annotations

from engine.guesses import Guesses


def after_text(text: list[int], path: list[int], limit: int) -> list[int]:
    return list(Guesses().behind(text, [])(path, limit))


def test_what_followed_the_same_tokens_follows_again() -> None:
    assert after_text([1, 2, 3, 4, 5, 1, 2], [], 3) == [3, 4, 5]


def test_the_longest_ngram_counts_and_of_equals_the_newest() -> None:
    text = [1, 2, 3, 7, 9, 2, 3, 8, 6, 3, 5, 1, 2]
    assert after_text(text, [3], 1) == [7]  # 1 2 3, though 3 was followed by 5 since
    assert after_text([1, 2, 7, 1, 2, 8, 4, 1], [2], 1) == [8]


def test_nothing_is_guessed_after_unknown_tokens() -> None:
    assert after_text([1, 2, 3], [9], 3) == []
    assert after_text([1, 2, 3, 2], [], 3) == [3, 2, 3]
    assert after_text([], [], 3) == []
    assert after_text([1, 2, 1], [], 0) == []


def test_drafts_are_learned_from_and_the_text_corrects_them() -> None:
    guesses = Guesses()
    assert guesses.behind([1, 2, 3], [])([4, 5], 2) == []
    assert guesses.behind([1, 2, 3], [])([], 2) == [4, 5]
    assert guesses.behind([1, 2, 3, 6, 2, 3], [])([], 2) == [6, 2]


def test_a_draft_is_read_as_it_grows() -> None:
    guess = Guesses().behind([1, 2, 3], [])
    assert guess([7], 2) == []
    assert guess([7, 8, 3], 3) == [7, 8, 3]


def test_a_text_is_read_as_it_grows_and_provisional_tokens_stand_behind_it() -> None:
    text = [1, 2, 3, 4]
    guesses = Guesses()
    assert guesses.behind(text, [9])([], 1) == []
    text += [5, 1, 2, 3]
    assert guesses.behind(text, [])([], 5) == [4, 5, 1, 2, 3]
    assert guesses.behind(text, [4])([], 2) == [5, 1]
