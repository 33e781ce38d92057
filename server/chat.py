"""From a chat completion request to what the engine is asked, and how its answer is read."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine.messages import Submit

from .call_reader import CallRules
from .chat_grammar import chat_grammar
from .chat_schemas import ChatCompletionRequest
from .dialects import Dialect
from .errors import invalid
from .predictions import encode_prediction
from .prompts import characters_of, conversation_of, encode, template_of
from .reading import Reading, Thinking
from .served import ServedModel
from .structured import asked_of
from .submits import check_characters, check_served, submits
from .thinking import CLOSE, OPEN
from .tokenizer import Prompt
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
    grammar = await chat_grammar(request, reading)
    prediction_ids = await encode_prediction(request.prediction, served)
    asked = [
        msgspec.structs.replace(submit, grammar=grammar, prediction_ids=prediction_ids)
        for submit in submits(request, prompt.ids, "messages", served, key)
    ]
    unused = {name: True for name in conversation.variables if name not in template.variables}
    return PreparedChat(asked, reading, Extra("chat_template_kwargs.", unused, {}))


def _reading(request: ChatCompletionRequest, prompt: Prompt, dialect: Dialect) -> Reading:
    choice, tools = request.choice_of_tools, request.callable_tools
    has_form = asked_of(request) is not None
    thinking = calls = None
    if dialect.thinks:
        thinking = Thinking(_is_thinking(request, prompt), request.include_reasoning is False)
    if tools:
        calls = CallRules(
            dialect.calls,
            names=frozenset(tool.function.name for tool in tools),
            is_single=choice.is_named or request.parallel_tool_calls is False,
            is_exact=has_form or any(tool.function.strict for tool in tools),
            is_alone=has_form,
            is_forced=choice.mode == "required",
        )
    return Reading(thinking, calls, "stop" if choice.is_named else "tool_calls")


def _is_thinking(request: ChatCompletionRequest, prompt: Prompt) -> bool:
    """Whether the prompt ends within thoughts."""
    if prompt.text.rstrip().endswith(OPEN):
        return True
    content = request.messages[-1].content or "" if request.continue_final_message else ""
    return content.lstrip().startswith(OPEN) and CLOSE not in content
