"""The grammar of a chat's answer: what it lets through is what is read as valid calls."""

from __future__ import annotations

from typing import Any

import pytest
import xgrammar

from engine.grammar.sources import source_of
from server.answering import validated
from server.call_formats import HERMES, LLAMA3_JSON, CallFormat
from server.call_reader import CallRules
from server.chat_grammar import chat_grammar
from server.chat_schemas import ChatCompletionRequest
from server.errors import ApiError
from server.parts import put_together
from server.reading import Reading, Thinking

FORMATS = pytest.mark.parametrize("form", [HERMES, LLAMA3_JSON], ids=lambda form: form.name)
VOCABULARY = [*map(chr, range(32, 127)), "\n", "<tool_call>", "</tool_call>", '{"', "<end>"]
END = len(VOCABULARY) - 1
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
ANSWER = {
    "type": "json_schema",
    "json_schema": {"name": "a", "schema": {"properties": {"yes": {"type": "boolean"}}}},
}
YES = '{"yes": true}'


@pytest.fixture(scope="module")
def compiler() -> xgrammar.GrammarCompiler:
    tokens = xgrammar.TokenizerInfo(VOCABULARY, xgrammar.VocabType.RAW, stop_token_ids=[END])
    return xgrammar.GrammarCompiler(tokens)


def tool(name: str, parameters: object = None, strict: bool | None = None) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": function}


def call(form: CallFormat, name: str, arguments: str) -> str:
    return form.head(name) + arguments + form.tail


NOW, GET = tool("now"), tool("get", CITY)


class Answer:
    """What may follow a request, and how it is read."""

    def __init__(
        self,
        compiler: xgrammar.GrammarCompiler,
        form: CallFormat = HERMES,
        thinking: Thinking | None = None,
        **fields: Any,
    ) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
        self.request = validated(ChatCompletionRequest, body)
        self.request.check()
        names = frozenset(tool.function.name for tool in self.request.callable_tools)
        is_single = self.request.parallel_tool_calls is False
        self.rules = CallRules(form, names, is_single)
        self.reading = Reading(thinking, self.rules if names else None)
        self._compiler = compiler
        self._compiled: xgrammar.CompiledGrammar | None = None

    async def prepare(self) -> Answer:
        if (grammar := await chat_grammar(self.request, self.reading)) is not None:
            assert grammar.kind == "structural_tag"
            source = source_of(grammar.kind, grammar.text)
            self._compiled = self._compiler.compile_structural_tag(source.text)
        return self

    @property
    def is_free(self) -> bool:
        return self._compiled is None

    def may_be(self, text: str) -> bool:
        assert self._compiled is not None
        matcher = xgrammar.GrammarMatcher(self._compiled)
        return (not text or matcher.accept_string(text)) and matcher.accept_token(END)

    def read(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        reader = self.reading.reader()
        said = put_together(reader.push(text) + reader.finish())
        return said.text, [(made.name, made.arguments) for made in said.calls]


@FORMATS
async def test_required_is_one_valid_call_or_more(
    compiler: xgrammar.GrammarCompiler, form: CallFormat
) -> None:
    answer = await Answer(compiler, form, tools=[GET, NOW], tool_choice="required").prepare()
    good, now = call(form, "get", '{"city": "Oslo"}'), call(form, "now", "{}")
    between = "\n" if form is HERMES else "; "
    for text in (good, now, between.join([good, now, good]), good.replace('"city": ', '"city":')):
        assert answer.may_be(text), text
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
        call(form, "now", '{"a": 1}'),
    ):
        assert not answer.may_be(text), text
    expected = ("", [("get", '{"city": "Oslo"}'), ("now", "{}")])
    assert answer.read(between.join([good, now])) == expected


@FORMATS
async def test_a_single_call_is_not_followed_by_another(
    compiler: xgrammar.GrammarCompiler, form: CallFormat
) -> None:
    fields = {"tools": [NOW], "tool_choice": "required", "parallel_tool_calls": False}
    answer = await Answer(compiler, form, **fields).prepare()
    now = call(form, "now", "{}")
    assert answer.may_be(now)
    assert not answer.may_be(f"{now}\n{now}")
    assert not answer.may_be(f"{now}; {now}")


async def test_only_functions_that_are_allowed_may_be_called(
    compiler: xgrammar.GrammarCompiler,
) -> None:
    allowed = [{"type": "function", "function": {"name": "now"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    for tool_choice in (choice, allowed[0]):
        answer = await Answer(compiler, tools=[GET, NOW], tool_choice=tool_choice).prepare()
        assert answer.may_be(call(HERMES, "now", "{}"))
        assert not answer.may_be(call(HERMES, "get", '{"city": "Oslo"}'))


@FORMATS
async def test_auto_without_a_strict_function_needs_no_grammar(
    compiler: xgrammar.GrammarCompiler, form: CallFormat
) -> None:
    assert (await Answer(compiler, form, tools=[GET]).prepare()).is_free
    assert (await Answer(compiler, form, Thinking()).prepare()).is_free


@FORMATS
@pytest.mark.parametrize("is_parallel", [True, False])
async def test_auto_keeps_strict_functions_to_their_schema_and_nothing_else(
    compiler: xgrammar.GrammarCompiler, form: CallFormat, is_parallel: bool
) -> None:
    tools = [tool("get", CITY, strict=True), tool("loose", CITY)]
    answer = await Answer(compiler, form, tools=tools, parallel_tool_calls=is_parallel).prepare()
    good, loose = call(form, "get", '{"city": "Oslo"}'), call(form, "loose", '{"z": 1}')
    for text in ("", "No { need < for } it.", good, "Sure. " + good, "Well, " + loose):
        assert answer.may_be(text), text
    assert answer.may_be(f"{good}\n{loose} Done.") is is_parallel
    for text in (call(form, "get", "{}"), call(form, "other", "{}"), form.trigger + "x"):
        assert not answer.may_be(text), text


@FORMATS
@pytest.mark.parametrize("strict", [True, False])
async def test_beside_a_form_of_answer_there_are_calls_or_that(
    compiler: xgrammar.GrammarCompiler, form: CallFormat, strict: bool
) -> None:
    tools = [tool("get", CITY, strict=strict)]
    answer = await Answer(compiler, form, tools=tools, response_format=ANSWER).prepare()
    good, wrong = call(form, "get", '{"city": "Oslo"}'), call(form, "get", '{"city": 1}')
    assert answer.may_be(YES)
    assert answer.may_be(good)
    assert answer.may_be(wrong) is not strict
    for text in ("", "x", '{"yes": 3}', YES + good):
        assert not answer.may_be(text), text


async def test_where_calls_are_required_the_form_of_answers_does_not_matter(
    compiler: xgrammar.GrammarCompiler,
) -> None:
    fields = {"tools": [NOW], "tool_choice": "required", "response_format": ANSWER}
    answer = await Answer(compiler, **fields).prepare()
    assert answer.may_be(call(HERMES, "now", "{}"))
    assert not answer.may_be(YES)


async def test_thoughts_may_come_before_calls(compiler: xgrammar.GrammarCompiler) -> None:
    fields: dict[str, Any] = {"tools": [NOW], "tool_choice": "required"}
    begun = await Answer(compiler, HERMES, Thinking(is_open=True), **fields).prepare()
    free = await Answer(compiler, HERMES, Thinking(), **fields).prepare()
    now = call(HERMES, "now", "{}")
    for text in (f"a < {now}</think>{now}", f"</think>\n\n{now}\n{now}"):
        assert begun.may_be(text), text
        assert free.may_be("<think>" + text), text
    assert not begun.may_be(now)
    assert free.may_be(now)
    for text in ("<think>a</think>", "a</think>" + now, "a"):
        assert not free.may_be(text), text


@pytest.mark.parametrize(
    ("fields", "good", "wrong"),
    [
        ({"response_format": ANSWER}, YES, "[]"),
        ({"response_format": {"type": "json_object"}}, '{"a": [1]}', "[]"),
        ({"guided_regex": "a+b"}, "aab", "aa"),
        ({"guided_choice": ["yes", "no"]}, "no", "maybe"),
        ({"ebnf": 'root ::= "x" root | "y"'}, "xxy", "xx"),
        (
            {
                "structured_outputs": {
                    "structural_tag": {"format": {"type": "const_string", "value": "hi"}}
                }
            },
            "hi",
            "ho",
        ),
    ],
    ids=str,
)
async def test_every_form_of_answer_may_follow_thoughts(
    compiler: xgrammar.GrammarCompiler, fields: dict[str, Any], good: str, wrong: str
) -> None:
    begun = await Answer(compiler, HERMES, Thinking(is_open=True), **fields).prepare()
    free = await Answer(compiler, HERMES, Thinking(), **fields).prepare()
    assert begun.may_be(f"hm</think>\n{good}")
    assert not begun.may_be(good)
    assert free.may_be(f"<think>hm</think>\n\n{good}")
    assert free.may_be(good)
    for answer in (wrong, f"<think>hm</think>{wrong}"):
        assert not free.may_be(answer)


async def test_without_thoughts_and_tools_the_grammar_stays_as_it_was_asked_for(
    compiler: xgrammar.GrammarCompiler,
) -> None:
    answer = Answer(compiler, guided_regex="a+")
    grammar = await chat_grammar(answer.request, answer.reading)
    assert grammar is not None
    assert (grammar.kind, grammar.text) == ("regex", "a+")


@pytest.mark.parametrize("choice", ["required", "auto"])
async def test_a_schema_that_cannot_be_enforced_is_refused_by_its_place(
    compiler: xgrammar.GrammarCompiler, choice: str
) -> None:
    parameters = {"type": "object", "properties": {"a": {"not": {}}}}
    tools = [tool("now"), tool("odd", parameters, strict=True)]
    with pytest.raises(ApiError, match="'not' is not supported") as error:
        await Answer(compiler, tools=tools, tool_choice=choice).prepare()
    assert error.value.body["error"]["param"] == "tools.1.function.parameters"
    loose = [tool("odd", parameters)]
    assert (await Answer(compiler, tools=loose).prepare()).is_free


async def test_tools_too_large_for_a_grammar_are_refused_where_it_is_needed(
    compiler: xgrammar.GrammarCompiler,
) -> None:
    tools = [tool(f"f{n}", {"properties": {"x" * 9000: {}}}) for n in range(9)]
    with pytest.raises(ApiError, match="bytes") as error:
        await Answer(compiler, tools=tools, tool_choice="required").prepare()
    assert error.value.body["error"]["param"] == "tools"
    assert (await Answer(compiler, tools=tools).prepare()).is_free


@FORMATS
def test_with_a_grammar_that_waits_for_the_usual_form_only_that_form_is_a_call(
    form: CallFormat,
) -> None:
    reading = Reading(calls=CallRules(form, frozenset({"get"}), is_exact=True))
    usual = call(form, "get", '{"a": 1}')
    for text, count in ((usual, 1), (usual.replace('"name": ', '"name":'), 0)):
        reader = reading.reader()
        said = put_together(reader.push(text) + reader.finish())
        assert len(said.calls) == count
        assert said.text == ("" if count else text)
