"""Tool calls in text: found whole in every split of it, and nothing that is no call is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.call_formats import HERMES, LLAMA3_JSON, CallFormat
from server.call_reader import CallReader, CallRules
from server.parts import Part, Said, ToolCall, merge_neighbours, put_together

NAMES = frozenset({"get", "get_weather", "no-op"})
ARGUMENTS = '{"city": "S\\u00e3o \\"Paulo\\" }]", "deep": [{"a": {}}, "</tool_call>"], "n": -1.5e3}'
RULES = ("is_single", "is_exact", "is_alone", "is_forced")
FORMATS = pytest.mark.parametrize("form", [HERMES, LLAMA3_JSON], ids=lambda form: form.name)


def read(form: CallFormat, pieces: list[str], **rules: bool) -> list[Part]:
    reader = CallReader(CallRules(form, NAMES, **rules))
    parts = [part for piece in pieces for part in reader.push(piece)]
    return merge_neighbours(parts + reader.finish())


def said(form: CallFormat, text: str) -> Said:
    return put_together(read(form, [text]))


def calls_of(what: Said) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in what.calls]


def without_ids(parts: list[Part]) -> list[Part]:
    return [replace(part, id="") if isinstance(part, ToolCall) else part for part in parts]


def call(form: CallFormat, name: str = "get", arguments: str = ARGUMENTS) -> str:
    body = f'{{"name": "{name}", "{form.arguments_key}": {arguments}}}'
    return f"{form.opening}{body}{form.closing}"


@FORMATS
def test_a_call_is_its_name_and_its_arguments_as_they_were_written(form: CallFormat) -> None:
    found = said(form, call(form))
    assert calls_of(found) == [("get", ARGUMENTS)]
    assert found.text == ""
    assert found.calls[0].id.startswith("call_")


@FORMATS
def test_text_around_calls_is_text_and_whitespace_is_not(form: CallFormat) -> None:
    text = f"\n Well. {call(form)}\n\n{call(form, 'no-op', '{}')} \n"
    found = said(form, text)
    assert found.text == "\n Well. "
    assert calls_of(found) == [("get", ARGUMENTS), ("no-op", "{}")]
    assert said(form, f"\n{call(form)} Done. ").text == " Done. "
    assert said(form, " \n").text == " \n"


@FORMATS
def test_whitespace_inside_a_call_is_free_up_to_a_limit(form: CallFormat) -> None:
    def spaced(space: str) -> str:
        words = ["{", '"name"', ":", '"get"', ",", f'"{form.arguments_key}"', ":", ARGUMENTS, "}"]
        return space.join(word for word in (form.opening, *words, form.closing) if word)

    assert calls_of(said(form, spaced(" \r\n\t"))) == [("get", ARGUMENTS)]
    assert said(LLAMA3_JSON, spaced(" " * 33)).calls == []


@FORMATS
def test_a_name_that_begins_like_another_is_told_apart(form: CallFormat) -> None:
    found = said(form, call(form, "get_weather"))
    assert calls_of(found) == [("get_weather", ARGUMENTS)]


@FORMATS
def test_a_call_may_say_its_type_and_may_have_no_arguments(form: CallFormat) -> None:
    typed = call(form).replace('{"name"', '{"type": "function", "name"', 1)
    assert calls_of(said(form, typed)) == [("get", ARGUMENTS)]
    bare = f'{form.opening}{{"name": "get"}}{form.closing}'
    assert calls_of(said(form, bare + "\n" + call(form))) == [("get", "{}"), ("get", ARGUMENTS)]


@FORMATS
@pytest.mark.parametrize(
    "text",
    [
        "a < b { c",
        '{"a": 1}',
        '{"name": "other", "arguments": {}}',
        '{"name": "get", "arguments": [1]}',
        '{"name": "get", "arguments": "{"}',
        '{"name": "get", "arguments": "{\\"a\\": \\"\\\\ud800\\"}" ,}',
        '{"arguments": {"a": "\\ud800"}, "name": "get"}',
        '{"name": ["get"], "arguments": {}}',
        '{"name": "get", "arguments": ',
        "[" * 5000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"name',
    ],
)
def test_what_only_looks_like_a_call_is_text(form: CallFormat, text: str) -> None:
    for whole in (text, f"x {form.opening}{text}{form.closing} y", form.opening + text):
        assert said(form, whole) == Said(whole)


def test_tags_without_a_call_are_text() -> None:
    for text in ("<tool_call>", "<tool_call> is a tag", "</tool_call>", "<tool_call><tool_call>"):
        assert said(HERMES, text).text == text
    found = said(HERMES, f"<tool_call>{call(HERMES)}")
    assert (found.text, calls_of(found)) == ("<tool_call>", [("get", ARGUMENTS)])


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"arguments": {"a": "é"}, "name": "get"}', '{"a": "é"}'),
        ('{"name": "get", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"id": 3, "name": "get", "arguments": {"a": "</tool_call>"}}', '{"a": "</tool_call>"}'),
        ('{"id": 3, "name": "get"}', "{}"),
        ('{"name": "get", "arguments": null}', "{}"),
    ],
)
def test_between_tags_any_order_of_keys_is_a_call(body: str, arguments: str) -> None:
    found = said(HERMES, f"<tool_call>\n{body}\n</tool_call>\n{call(HERMES)}")
    assert calls_of(found) == [("get", arguments), ("get", ARGUMENTS)]
    assert found.text == ""


def test_the_closing_tag_may_be_missing_at_the_end_and_before_another_call() -> None:
    open_call = call(HERMES).removesuffix("</tool_call>")
    for text in (open_call, open_call.removesuffix("}"), open_call + "</tool"):
        assert calls_of(said(HERMES, text)) == [("get", ARGUMENTS)]
        assert said(HERMES, text).text == ""
    assert len(said(HERMES, open_call + call(HERMES)).calls) == 2


def test_arguments_that_are_cut_or_wrong_stay_as_they_are() -> None:
    cut = call(HERMES)[:-30]
    reader = CallReader(CallRules(HERMES, NAMES))
    found = put_together(reader.push(cut) + reader.finish())
    assert found.calls[0].arguments == cut[cut.index('{"city"') :]
    assert not reader.has_calls
    wrong = call(HERMES, arguments='{"a": oops, [}')
    assert said(HERMES, wrong).calls[0].arguments.startswith('{"a": oops')


def test_llamas_marker_is_no_text_and_semicolons_part_calls() -> None:
    text = f"<|python_tag|>{call(LLAMA3_JSON)}; {call(LLAMA3_JSON, 'no-op', '{}')};"
    found = said(LLAMA3_JSON, text)
    assert (found.text, calls_of(found)) == ("", [("get", ARGUMENTS), ("no-op", "{}")])
    assert said(LLAMA3_JSON, "a<|python_tag|>import b; c").text == "aimport b; c"


@FORMATS
def test_a_single_call_ends_the_answer(form: CallFormat) -> None:
    reader = CallReader(CallRules(form, NAMES, is_single=True))
    text = "Hm. " + call(form) + call(form) + "more"
    at = 0
    parts: list[Part] = []
    while not reader.is_over:
        parts += reader.push(text[at])
        at += 1
    assert text[:at] == "Hm. " + call(form)
    found = put_together(parts + reader.finish())
    assert (found.text, calls_of(found)) == ("Hm. ", [("get", ARGUMENTS)])
    assert without_ids(read(form, [text], is_single=True)) == without_ids(merge_neighbours(parts))


@FORMATS
def test_where_answers_are_calls_or_text_no_call_follows_text(form: CallFormat) -> None:
    for text, count in ((f" \n{call(form)}\n{call(form)}", 2), (f"{{}} {call(form)}", 0)):
        found = put_together(read(form, [text], is_alone=True))
        assert len(found.calls) == count
        assert found.text == ("" if count else text)


@FORMATS
def test_where_nothing_but_calls_can_come_half_of_one_is_no_text(form: CallFormat) -> None:
    text = f"{call(form)}\n{call(form)}"
    for end in range(len(call(form)), len(text)):
        found = put_together(read(form, [text[:end]], is_forced=True))
        assert found.text == ""
        assert found.calls[0].arguments == ARGUMENTS


@FORMATS
def test_text_is_held_back_only_while_it_may_be_a_call(form: CallFormat) -> None:
    reader = CallReader(CallRules(form, NAMES))
    begin = form.opening or "{"
    assert put_together(reader.push("Hello " + begin[:1])).text == "Hello "
    assert put_together(reader.push("x")).text == begin[:1] + "x"
    head = call(form).partition(ARGUMENTS)[0] + "{"
    assert not any(reader.push(char) for char in head[:-1])
    start, brace = reader.push("{")
    assert isinstance(start, ToolCall)
    assert start.is_start
    assert isinstance(brace, ToolCall)
    assert brace.arguments == "{"
    assert [part.arguments for part in reader.push('"a') if isinstance(part, ToolCall)] == ['"a']


PIECES = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "<", "tool", " ", "\n", ";", "Hi", "é"),
    *('{"name": "get"', '{"name":', '"get"', ', "arguments": {', ', "parameters": {', "}", "}}"),
    *('{"arguments": {}, "name": "no-op"}', '"', "\\", '"a": 1', "[", "]", '{"a": "'),
    *map(call, (HERMES, LLAMA3_JSON)),
]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(
    text=texts,
    form=st.sampled_from([HERMES, LLAMA3_JSON]),
    rules=st.fixed_dictionaries({name: st.booleans() for name in RULES}),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_every_split_of_a_text_gives_the_same(
    text: str, form: CallFormat, rules: dict[str, bool], cuts: list[int]
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    expected = without_ids(read(form, [text], **rules))
    assert without_ids(read(form, pieces, **rules)) == expected
    assert without_ids(read(form, list(text), **rules)) == expected


objects = st.dictionaries(st.text(), st.text(), max_size=3)
segments = st.lists(
    st.one_of(
        st.sampled_from(["a", "Hello.", "x < y", "{}", "é"]),
        st.tuples(
            st.sampled_from(sorted(NAMES)), st.dictionaries(st.text(), st.text(), max_size=3)
        ),
    ),
    max_size=6,
)


@given(segments=segments, form=st.sampled_from([HERMES, LLAMA3_JSON]))
def test_what_was_written_is_what_is_read(segments: list[object], form: CallFormat) -> None:
    text, expected, words = "", [], ""
    for segment in segments:
        if isinstance(segment, tuple):
            expected.append(segment)
            text += call(form, segment[0], json.dumps(segment[1], ensure_ascii=False))
        else:
            words += str(segment)
            text += str(segment)
    found = said(form, text)
    assert found.text == words
    assert [(name, json.loads(arguments)) for name, arguments in calls_of(found)] == expected
