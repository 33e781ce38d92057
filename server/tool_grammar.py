"""The grammar that keeps a model to its tools, as xgrammar's structural tags.

    required, named   calls and nothing else; the arguments of each are as its schema says
    auto              any text; from where a call begins, the same for functions that are strict

A model that thinks may think first. Between two elements of JSON there is at most one space.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.messages import Grammar

from . import thinking
from .call_formats import CallFormat
from .chat_tools import Tool, ToolChoice

Format = dict[str, Any]

_ANY_OBJECT: Format = {"type": "object"}


def tool_grammar(
    tools: Sequence[Tool], choice: ToolChoice, form: CallFormat, is_single: bool
) -> Format | None:
    """What an answer may be; None for anything. The tools are those that may be called."""
    is_required = choice.mode == "required"
    if not is_required and not any(tool.function.strict for tool in tools):
        return None
    tags = [_tag(tool, form, is_required or bool(tool.function.strict)) for tool in tools]
    if is_required:
        separator = "\n" if form.closing else f"{form.separators} "
        kind: Format = {"type": "tags_with_separator", "separator": separator}
    else:
        kind = {"type": "triggered_tags", "triggers": [form.trigger]}
    return kind | {"tags": tags, "at_least_one": is_required, "stop_after_first": is_single}


def _tag(tool: Tool, form: CallFormat, is_strict: bool) -> Format:
    schema = _ANY_OBJECT | tool.function.schema_of_arguments if is_strict else _ANY_OBJECT
    content = {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}
    name = tool.function.name
    return {"type": "tag", "begin": form.head(name), "content": content, "end": form.tail}


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
