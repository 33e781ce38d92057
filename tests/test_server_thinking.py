"""Thoughts and answer: apart in every split of the text, and nothing but whitespace lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.thinking import ThinkReader


def read(pieces: list[str], starts_inside: bool = False) -> tuple[str, str]:
    reader = ThinkReader(starts_inside)
    both = [*map(reader.push, pieces), reader.finish()]
    return "".join(thoughts for thoughts, _ in both), "".join(answer for _, answer in both)


@pytest.mark.parametrize(
    ("text", "starts_inside", "expected"),
    [
        ("<think>\nhm, 1 < 2\n\n</think>\n\nYes. ", False, ("hm, 1 < 2", "Yes. ")),
        (" <think>hm", False, ("hm", "")),
        ("hm\n</think> Yes", True, ("hm", "Yes")),
        ("<think>\nhm</think>Yes", True, ("hm", "Yes")),
        ("hm </thin", True, ("hm </thin", "")),
        ("hm \n", True, ("hm", "")),
        ("</think>\n", True, ("", "")),
        ("<think></think>Yes", False, ("", "Yes")),
        (" No <think>x</think>", False, ("", " No <think>x</think>")),
        ("<thin", False, ("", "<thin")),
        (" \n", False, ("", " \n")),
        ("a</think>b</think>c<think>d", True, ("a", "b</think>c<think>d")),
    ],
)
def test_thoughts_are_told_from_the_answer(
    text: str, starts_inside: bool, expected: tuple[str, str]
) -> None:
    assert read([text], starts_inside) == expected
    assert read(list(text), starts_inside) == expected


@given(
    pieces=st.lists(
        st.sampled_from(["<think>", "</think>", "<", "think", "/", ">", " ", "\n", "a"]), max_size=9
    ),
    starts_inside=st.booleans(),
)
def test_every_split_of_a_text_gives_the_same(pieces: list[str], starts_inside: bool) -> None:
    text = "".join(pieces)
    expected = read([text], starts_inside)
    assert read(pieces, starts_inside) == expected
    assert read(list(text), starts_inside) == expected
    assert len(text) - sum(map(len, expected)) <= 2 * len("<think>") + 1 + sum(
        char.isspace() for char in text
    )


def test_whitespace_and_half_tags_wait_for_what_follows() -> None:
    reader = ThinkReader(starts_inside=True)
    pushes = ["a ", "b</", "x</think", "> ", "\n", "c "]
    assert [reader.push(text) for text in pushes] == [
        ("a", ""),
        (" b", ""),
        ("</x", ""),
        ("", ""),
        ("", ""),
        ("", "c "),
    ]
