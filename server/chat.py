"""From a chat completion request to what the engine is asked, and how its answer is read."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine.messages import Grammar, Submit

from .call_reader import CallRules
from .chat_schemas import ChatCompletionRequest
from .chat_tools import Tool
from .dialects import Dialect
from .errors import invalid
from .predictions import encode_prediction
from .prompts import characters_of, conversation_of, encode, template_of
from .reading import Reading, Thinking
from .served import ServedModel
from .structured import TOOLS, asked_of, check_asked, check_grammar
from .submits import check_characters, check_served, submits
from .thinking import CLOSE, OPEN
from .tokenizer import Prompt
from .tool_grammar import Format, as_grammar, behind_thoughts, either, tool_grammar
from .unsupported import Extra


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """One `Submit` for each choice; `ignored` are variables that the template does not use."""

    submits: list[Submit]
    reading: Reading
    ignored: Extra


async def prepare(request: ChatCompletionRequest, served: ServedModel, key: str) -> PreparedChat:
    """Raises `ApiError` for all that can refuse the request."""
    check_served(request, served)
    template = template_of(served)
    conversation = conversation_of(request, template, served.dialect)
    check_characters(characters_of(conversation), "messages", served)
    prompt = await encode(conversation, served)
    if not prompt.ids:
        raise invalid("The messages render to an empty prompt.", "messages")
    reading = _reading(request, prompt, served.dialect)
    grammar = await _grammar(request, reading)
    prediction_ids = await encode_prediction(request.prediction, served)
    asked = [
        msgspec.structs.replace(submit, grammar=grammar, prediction_ids=prediction_ids)
        for submit in submits(request, prompt.ids, "messages", served, key)
    ]
    unused = {name: True for name in conversation.variables if name not in template.variables}
    return PreparedChat(asked, reading, Extra("chat_template_kwargs.", unused, {}))


def _reading(request: ChatCompletionRequest, prompt: Prompt, dialect: Dialect) -> Reading:
    choice, tools = request.choice_of_tools, _callable_tools(request)
    thinking = calls = None
    if dialect.thinks:
        thinking = Thinking(_is_thinking(request, prompt), request.include_reasoning is False)
    if tools:
        calls = CallRules(
            dialect.calls,
            names=frozenset(tool.function.name for tool in tools),
            is_single=choice.is_named or request.parallel_tool_calls is False,
            is_exact=_has_format(request) or any(tool.function.strict for tool in tools),
        )
    return Reading(thinking, calls, "stop" if choice.is_named else "tool_calls")


async def _grammar(request: ChatCompletionRequest, reading: Reading) -> Grammar | None:
    """What the whole answer may be: thoughts, and then the format asked for, or calls of tools.

    Raises `ApiError` 400 where that cannot be kept to.
    """
    await check_asked(request)
    asked, calls = asked_of(request), _calls(request, reading)
    if asked is None and calls is None:
        return None
    if asked is not None and calls is None and reading.thinking is None:
        return asked.grammar
    answer = either(None if _must_call(request) or asked is None else asked.grammar, calls)
    if reading.thinking is not None:
        answer = behind_thoughts(answer, reading.thinking.is_open)
    grammar = as_grammar(answer)
    await check_grammar(grammar, TOOLS)
    return grammar


def _calls(request: ChatCompletionRequest, reading: Reading) -> Format | None:
    """Calls of tools, if a grammar has to watch over them."""
    if reading.calls is None:
        return None
    tools, choice, form = _callable_tools(request), request.choice_of_tools, reading.calls.form
    return tool_grammar(tools, choice, form, reading.calls.is_single, _has_format(request))


def _must_call(request: ChatCompletionRequest) -> bool:
    return request.choice_of_tools.mode == "required"


def _has_format(request: ChatCompletionRequest) -> bool:
    return asked_of(request) is not None


def _callable_tools(request: ChatCompletionRequest) -> list[Tool]:
    names = request.choice_of_tools.names
    tools = request.offered_tools
    return [tool for tool in tools if names is None or tool.function.name in names]


def _is_thinking(request: ChatCompletionRequest, prompt: Prompt) -> bool:
    """Whether the prompt ends within thoughts."""
    if prompt.text.rstrip().endswith(OPEN):
        return True
    content = request.messages[-1].content or "" if request.continue_final_message else ""
    return content.lstrip().startswith(OPEN) and CLOSE not in content
