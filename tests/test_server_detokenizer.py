"""Streamed text equals the whole decode cut at the first stop string, however tokens arrive."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from server.detokenizer import Detokenizer, StopStrings, context_of
from server.tokenizer import ChatTokenizer, load_tokenizer
from tests.server_harness import build_model_folder


@functools.cache
def tokenizer() -> ChatTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(build_model_folder(Path(folder)))


def ids_of(text: str) -> list[int]:
    return tokenizer()._encode(text)


def stream(ids: list[int], sizes: list[int], stops: list[str]) -> tuple[str, int]:
    """Feed `ids` in steps of `sizes` (repeated): the joined pieces, and the tokens consumed."""
    detokenizer, start = Detokenizer(tokenizer(), stops), 0
    pieces: list[str] = []
    while start < len(ids) and not detokenizer.is_stopped:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(detokenizer.push(ids[start : start + size]))
        start += size
    return "".join(pieces) + detokenizer.finish(), detokenizer.consumed


def cut(text: str, stops: list[str]) -> str:
    """The specification: the stop that is complete first, the longer of two, ends the text."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)
any_ids = st.lists(st.integers(0, 319), max_size=30)
letters = st.lists(st.sampled_from("abé漢 "), max_size=24).map("".join)
stop_lists = st.lists(st.text(alphabet="abé漢 ", min_size=1, max_size=3), max_size=4)


@given(any_ids, sizes)
def test_pieces_of_any_tokens_join_to_the_whole_decode(ids: list[int], steps: list[int]) -> None:
    known = [i for i in ids if i < tokenizer()._tokenizer.get_vocab_size()]
    words = [i for i in known if i not in tokenizer().special_ids]
    assert stream(known, steps, []) == (tokenizer().decode(words), len(known))


@given(letters, stop_lists, sizes)
def test_text_is_cut_at_the_first_stop_string(
    text: str, stops: list[str], steps: list[int]
) -> None:
    assert stream(ids_of(text), steps, stops)[0] == cut(text, stops)


@given(letters, stop_lists, sizes)
def test_consumed_tokens_do_not_depend_on_the_steps(
    text: str, stops: list[str], steps: list[int]
) -> None:
    ids = ids_of(text)
    _, consumed = stream(ids, steps, stops)
    assert consumed == stream(ids, [1], stops)[1]
    if cut(text, stops) != text:
        before = cut(tokenizer().decode(ids[: consumed - 1]).rstrip("\ufffd"), stops)
        assert before == tokenizer().decode(ids[: consumed - 1]).rstrip("\ufffd")


def test_broken_characters_are_held_back_until_they_are_whole() -> None:
    detokenizer = Detokenizer(tokenizer())
    ids = ids_of("é漢")
    assert [detokenizer.push([i]) for i in ids] == ["", "é", "", "", "漢"]


def test_a_broken_character_at_the_end_is_shown_as_such() -> None:
    detokenizer = Detokenizer(tokenizer())
    assert detokenizer.push(ids_of("é")[:1]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_a_stop_string_inside_a_step_drops_the_rest_of_the_step() -> None:
    detokenizer = Detokenizer(tokenizer(), ["b"])
    ids = ids_of("a") + ids_of("b") + ids_of("c")
    assert detokenizer.push(ids) == "a"
    assert (detokenizer.is_stopped, detokenizer.consumed) == (True, 2)


@pytest.mark.parametrize(
    ("pieces", "certain"),
    [
        (["a E", "N", "x"], ["a ", "", "ENx"]),
        (["a E", "ND b"], ["a ", ""]),
        (["EEN", "D"], ["E", ""]),
    ],
)
def test_half_stop_strings_are_held_back(pieces: list[str], certain: list[str]) -> None:
    stops = StopStrings(["END"])
    assert [stops.push(piece) for piece in pieces] == certain


@given(letters, stop_lists, sizes, st.integers(0, 12))
def test_min_tokens_lets_stop_strings_count_that_end_in_later_tokens(
    text: str, stops: list[str], steps: list[int], min_tokens: int
) -> None:
    """Against the definition: of two ends the first, of two starts the earlier."""
    ids = ids_of(text)
    detokenizer = Detokenizer(tokenizer(), stops, min_tokens=min_tokens)
    expected = text
    for count in range(min_tokens + 1, len(ids) + 1):
        before, known = (tokenizer().decode(ids[:n]).rstrip("\ufffd") for n in (count - 1, count))
        ends = [
            (end, end - len(stop))
            for stop in stops
            for end in range(len(before) + 1, len(known) + 1)
            if known[:end].endswith(stop)
        ]
        if ends:
            expected = text[: min(ends)[1]]
            break
    pieces, start = [], 0
    while start < len(ids):
        size = steps[len(pieces) % len(steps)]
        pieces.append(detokenizer.push(ids[start : start + size]))
        start += size
    assert "".join(pieces) + detokenizer.finish() == expected


@given(any_ids, stop_lists, sizes)
def test_released_tokens_are_those_whose_text_is_out(
    ids: list[int], stops: list[str], steps: list[int]
) -> None:
    detokenizer, text, start, number = Detokenizer(tokenizer(), stops), "", 0, 0
    ids = [i for i in ids if i < tokenizer().vocab_size]
    while start < len(ids) and not detokenizer.is_stopped:
        size = steps[number % len(steps)]
        text += detokenizer.push(ids[start : start + size])
        start, number = start + size, number + 1
        if not detokenizer.is_stopped:
            own = [i for i in ids[: detokenizer.released] if i not in tokenizer().special_ids]
            assert text.startswith(tokenizer().decode(own))
            assert detokenizer.released <= detokenizer.consumed
    detokenizer.finish()
    assert detokenizer.released == detokenizer.consumed


def test_hidden_tokens_are_no_text() -> None:
    (stop,) = ids_of("b")
    detokenizer = Detokenizer(tokenizer(), hidden=[stop])
    assert detokenizer.push([*ids_of("a"), stop]) == "a"
    assert (detokenizer.consumed, detokenizer.released) == (2, 2)


@given(any_ids, sizes)
def test_a_token_starts_where_the_text_of_whole_characters_before_it_ends(
    ids: list[int], steps: list[int]
) -> None:
    ids = [i for i in ids if i < tokenizer().vocab_size]
    detokenizer, start, number = Detokenizer(tokenizer()), 0, 0
    text, starts = "", []
    while start < len(ids):
        size = steps[number % len(steps)]
        text += detokenizer.push(ids[start : start + size])
        starts += detokenizer.starts(len(starts), detokenizer.released)
        start, number = start + size, number + 1
    text += detokenizer.finish()
    starts += detokenizer.starts(len(starts), detokenizer.released)
    assert len(starts) == len(ids)
    assert starts == sorted(starts)
    for count, first in enumerate(starts):
        before = [i for i in ids[:count] if i not in tokenizer().special_ids]
        known = tokenizer().decode(before)
        is_whole = not known.endswith("\ufffd")
        assert text[:first] == known if is_whole else known.startswith(text[:first])


@functools.cache
def spaced_tokenizer() -> ChatTokenizer:
    """As SentencePiece's: words carry their space, and the decoder drops the first one."""
    words = ["<s>", "\u2581hello", "\u2581world", "s", "<0xC3>", "<0xA9>"]
    model = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<s>")
    spaced = Tokenizer(model)
    spaced.add_special_tokens(["<s>"])
    spaced.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return ChatTokenizer(spaced.to_str(), None, [])


@given(st.lists(st.integers(1, 3), min_size=1), st.lists(st.integers(1, 3)), sizes)
def test_an_answer_that_continues_a_text_keeps_its_space(
    prompt: list[int], answer: list[int], steps: list[int]
) -> None:
    spaced = spaced_tokenizer()
    context = context_of([0, *prompt], spaced)
    assert 1 <= len(context) <= 8
    detokenizer, text, number = Detokenizer(spaced, context=context), "", 0
    while detokenizer.consumed < len(answer):
        size = steps[number % len(steps)]
        text += detokenizer.push(answer[detokenizer.consumed :][:size])
        number += 1
    text += detokenizer.finish()
    assert spaced.decode(prompt) + text == spaced.decode([*prompt, *answer])


def test_there_is_no_context_behind_a_special_token_or_within_a_character() -> None:
    spaced = spaced_tokenizer()
    assert context_of([1, 2, 0], spaced) == []
    assert context_of([1, 4], spaced) == []
    assert context_of([1, 4, 5], spaced) == [1, 4, 5]
    assert context_of([1, 0, 2], spaced) == [2]
