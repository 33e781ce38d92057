"""The grammar that keeps a model to its tools, as xgrammar's structural tags.

    required, named     calls and nothing else; the arguments of each are as its schema says
    auto                any text; from where a call begins, the same for functions that are strict
    auto, and a format  text of that format, or calls and nothing else

A model that thinks may think first. Between two elements of JSON there is at most one space. A
function that is not strict is kept to its schema as far as that can be done exactly, else to JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.grammar.json_schemas import normalized
from engine.grammar.regexes import GrammarError
from engine.grammar.sources import source_of
from engine.messages import Grammar

from . import thinking
from .call_formats import CallFormat
from .chat_tools import Tool, ToolChoice

Format = dict[str, Any]

_ANY_OBJECT: Format = {"type": "object"}


def tool_grammar(
    tools: Sequence[Tool],
    choice: ToolChoice,
    form: CallFormat,
    is_single: bool,
    has_format: bool = False,
) -> Format | None:
    """What an answer may be; None for anything. The tools are those that may be called.

    Where the answer is to have a format it is that of calls alone.
    """
    is_required = choice.mode == "required"
    is_alone = is_required or has_format
    if not is_alone and not any(tool.function.strict for tool in tools):
        return None
    tags = [_tag(tool, form, is_required) for tool in tools]
    if is_alone:
        separator = "\n" if form.closing else f"{form.separators} "
        kind: Format = {"type": "tags_with_separator", "separator": separator}
    else:
        kind = {"type": "triggered_tags", "triggers": [form.trigger]}
    return kind | {"tags": tags, "at_least_one": is_alone, "stop_after_first": is_single}


def _tag(tool: Tool, form: CallFormat, is_required: bool) -> Format:
    schema = _ANY_OBJECT | tool.function.schema_of_arguments
    is_kept = tool.function.strict or (is_required and _can_be_kept(schema))
    schema = schema if is_kept else _ANY_OBJECT
    content = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}
    name = tool.function.name
    return {"type": "tag", "begin": form.head(name), "content": content, "end": form.tail}


def _can_be_kept(schema: Format) -> bool:
    try:
        normalized(schema)
    except GrammarError:
        return False
    return True


def either(format: Grammar | None, calls: Format | None) -> Format:
    """An answer that is one of the two; one of them is there."""
    options = [] if calls is None else [calls]
    if format is not None:
        options.insert(0, _as_part(format))
    return options[0] if len(options) == 1 else {"type": "or", "elements": options}


def _as_part(grammar: Grammar) -> Format:
    """A grammar that stands for itself as part of a structural tag."""
    match grammar.kind:
        case "json_object":
            return {"type": "json_schema", "json_schema": _ANY_OBJECT}
        case "json_schema":
            return {"type": "json_schema", "json_schema": json.loads(grammar.text)}
        case "regex":
            return {"type": "regex", "pattern": grammar.text}
        case "choice" | "ebnf":
            return {"type": "grammar", "grammar": source_of(grammar.kind, grammar.text).text}
        case "structural_tag":
            part: Format = json.loads(grammar.text)["format"]
            return part


def behind_thoughts(answer: Format, is_thinking: bool) -> Format:
    """The same behind thoughts: those that the prompt has begun, or else the model may begin."""
    begin = "" if is_thinking else thinking.OPEN
    thoughts = {"type": "tag", "begin": begin, "content": {"type": "any_text"}}
    space = {"type": "regex", "pattern": r"\n{0,2}"}
    elements: list[Format] = [thoughts | {"end": thinking.CLOSE}, space]
    if is_thinking:
        return {"type": "sequence", "elements": [*elements, answer]}
    first = {"type": "optional", "content": {"type": "sequence", "elements": elements}}
    return {"type": "sequence", "elements": [first, answer]}


def as_grammar(answer: Format) -> Grammar:
    tag = {"type": "structural_tag", "format": answer}
    return Grammar("structural_tag", json.dumps(tag, ensure_ascii=False))
