"""The grammar of tool calls: what it lets through is what the reader reads as valid calls."""

from __future__ import annotations

from typing import Any

import pytest
import xgrammar

from server.call_formats import HERMES, LLAMA3_JSON, CallFormat
from server.call_reader import CallReader, CallRules
from server.chat_tools import Tool, ToolChoice
from server.parts import put_together
from server.tool_grammar import as_grammar, behind_thoughts, tool_grammar

FORMATS = pytest.mark.parametrize("form", [HERMES, LLAMA3_JSON], ids=lambda form: form.name)
VOCABULARY = [*map(chr, range(32, 127)), "\n", "<tool_call>", "</tool_call>", '{"', "<end>"]
END = len(VOCABULARY) - 1
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
REQUIRED = ToolChoice("required")


@pytest.fixture(scope="module")
def compiler() -> xgrammar.GrammarCompiler:
    tokens = xgrammar.TokenizerInfo(VOCABULARY, xgrammar.VocabType.RAW, stop_token_ids=[END])
    return xgrammar.GrammarCompiler(tokens)


def tool(name: str, parameters: dict[str, Any] | None = None, strict: bool | None = None) -> Tool:
    function = {"name": name, "parameters": parameters, "strict": strict}
    return Tool.model_validate({"type": "function", "function": function})


def call(form: CallFormat, name: str, arguments: str) -> str:
    return form.head(name) + arguments + form.tail


def lets_through(
    compiler: xgrammar.GrammarCompiler, form: dict[str, Any] | None, text: str
) -> bool:
    assert form is not None
    matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(as_grammar(form).text))
    return (not text or matcher.accept_string(text)) and matcher.accept_token(END)


@FORMATS
def test_required_is_one_valid_call_or_more(
    compiler: xgrammar.GrammarCompiler, form: CallFormat
) -> None:
    tools = [tool("get", CITY), tool("now")]
    grammar = tool_grammar(tools, REQUIRED, form, is_single=False)
    good, now = call(form, "get", '{"city": "Oslo"}'), call(form, "now", "{}")
    between = "\n" if form is HERMES else "; "
    for text in (good, now, between.join([good, now, good]), good.replace('"city": ', '"city":')):
        assert lets_through(compiler, grammar, text), text
    for text in (
        "",
        "Sure. " + good,
        good + " ",
        good + good,
        call(form, "other", "{}"),
        call(form, "get", "{}"),
        call(form, "get", '{"city": "Rome"}'),
        call(form, "get", '{"city": "Oslo", "more": 1}'),
        call(form, "get", '{"city":  "Oslo"}'),
        call(form, "now", "[]"),
    ):
        assert not lets_through(compiler, grammar, text), text
    rules = CallRules(form, frozenset({"get", "now"}))
    reader = CallReader(rules)
    said = put_together(reader.push(between.join([good, now])) + reader.finish())
    found = [(made.name, made.arguments) for made in said.calls]
    assert found == [("get", '{"city": "Oslo"}'), ("now", "{}")]
    assert said.text == ""


@FORMATS
def test_a_single_call_is_not_followed_by_another(
    compiler: xgrammar.GrammarCompiler, form: CallFormat
) -> None:
    grammar = tool_grammar([tool("now")], REQUIRED, form, is_single=True)
    now = call(form, "now", "{}")
    assert lets_through(compiler, grammar, now)
    assert not lets_through(compiler, grammar, f"{now}\n{now}")
    assert not lets_through(compiler, grammar, f"{now}; {now}")


@FORMATS
def test_auto_without_a_strict_function_needs_no_grammar(form: CallFormat) -> None:
    assert tool_grammar([tool("get", CITY)], ToolChoice("auto"), form, False) is None


@FORMATS
@pytest.mark.parametrize("is_single", [False, True])
def test_auto_keeps_strict_functions_to_their_schema_and_nothing_else(
    compiler: xgrammar.GrammarCompiler, form: CallFormat, is_single: bool
) -> None:
    tools = [tool("get", CITY, strict=True), tool("loose", CITY)]
    grammar = tool_grammar(tools, ToolChoice("auto"), form, is_single)
    good, loose = call(form, "get", '{"city": "Oslo"}'), call(form, "loose", '{"z": 1}')
    for text in ("", "No { need < for } it.", good, "Sure. " + good, "Well, " + loose):
        assert lets_through(compiler, grammar, text), text
    assert lets_through(compiler, grammar, f"{good}\n{loose} Done.") is not is_single
    for text in (call(form, "get", "{}"), call(form, "other", "{}"), form.trigger + "x"):
        assert not lets_through(compiler, grammar, text), text


@FORMATS
def test_with_a_grammar_that_waits_for_the_usual_form_only_that_form_is_a_call(
    form: CallFormat,
) -> None:
    rules = CallRules(form, frozenset({"get"}), is_exact=True)
    usual = call(form, "get", '{"a": 1}')
    for text, count in ((usual, 1), (usual.replace('"name": ', '"name":'), 0)):
        reader = CallReader(rules)
        said = put_together(reader.push(text) + reader.finish())
        assert len(said.calls) == count
        assert said.text == ("" if count else text)


def test_thoughts_may_come_first(compiler: xgrammar.GrammarCompiler) -> None:
    grammar = tool_grammar([tool("now")], REQUIRED, HERMES, is_single=False)
    assert grammar is not None
    now = call(HERMES, "now", "{}")
    begun, free = behind_thoughts(grammar, True), behind_thoughts(grammar, False)
    for text in (f"a < {now}</think>{now}", f"</think>\n\n{now}\n{now}"):
        assert lets_through(compiler, begun, text), text
        assert lets_through(compiler, free, "<think>" + text), text
    assert not lets_through(compiler, begun, now)
    assert lets_through(compiler, free, now)
    for text in ("<think>a</think>", "a</think>" + now, "a"):
        assert not lets_through(compiler, free, text), text
