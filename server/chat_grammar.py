"""The one grammar of a chat's answer, made of its thoughts, its tools and the form asked for."""

from __future__ import annotations

import asyncio
import json

from engine.grammar.regexes import GrammarError
from engine.grammar.sources import source_of
from engine.messages import Grammar

from .chat_schemas import ChatCompletionRequest
from .errors import invalid
from .reading import Reading
from .structured import asked_of, check_asked, refused_by_engine
from .tool_grammar import Part, answer_with_tools, behind_thoughts, enforced_schema


async def chat_grammar(request: ChatCompletionRequest, reading: Reading) -> Grammar | None:
    """None where any answer will do. Raises `ApiError` 400 for what cannot be enforced."""
    await check_asked(request)
    asked = asked_of(request)
    answer = form = None if asked is None else _part(asked.grammar)
    if reading.calls is not None:
        tools, choice = request.callable_tools, request.choice_of_tools
        answer = answer_with_tools(tools, choice, reading.calls, form)
    if answer is None:
        return None
    if reading.thinking is not None:
        answer = behind_thoughts(answer, reading.thinking.is_open)
    elif asked is not None and reading.calls is None:
        return asked.grammar
    tag = {"type": "structural_tag", "format": answer}
    grammar = Grammar("structural_tag", json.dumps(tag, ensure_ascii=False))
    await asyncio.to_thread(_check, request, grammar)
    return grammar


def _part(grammar: Grammar) -> Part:
    """A grammar that was checked, as a part of a larger one."""
    match grammar.kind:
        case "json_object":
            return {"type": "json_schema", "json_schema": {"type": "object"}}
        case "json_schema":
            return {"type": "json_schema", "json_schema": json.loads(grammar.text)}
        case "regex":
            return {"type": "regex", "pattern": grammar.text}
        case "choice":
            texts = json.loads(grammar.text)
            options = [{"type": "const_string", "value": text} for text in texts]
            return {"type": "or", "elements": options}
        case "ebnf":
            return {"type": "grammar", "grammar": grammar.text}
        case "structural_tag":
            part: Part = json.loads(grammar.text)["format"]
            return part


def _check(request: ChatCompletionRequest, grammar: Grammar) -> None:
    """Raises `ApiError` 400 that names the tool whose schema cannot be enforced, if it is one."""
    is_required = request.choice_of_tools.mode == "required"
    for index, tool in enumerate(request.tools or []):
        if tool in request.callable_tools and (is_required or tool.function.strict):
            param = f"tools.{index}.function.parameters"
            try:
                source_of("json_schema", json.dumps(enforced_schema(tool.function)))
            except GrammarError as error:
                raise invalid(f"Invalid '{param}': {error}.", param) from None
    try:
        source_of(grammar.kind, grammar.text)
    except GrammarError as error:
        raise refused_by_engine(request, str(error)) from None
