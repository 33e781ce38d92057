"""What keeps a model to its tools, as parts of xgrammar's structural tags.

required, named   calls and nothing else; the arguments of each are as its schema says
auto              any text; from where a call begins, the same for functions that are strict
auto, and a form  calls, or an answer of the form that was asked for
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import thinking
from .call_formats import CallFormat
from .call_reader import CallRules
from .chat_tools import Function, Tool, ToolChoice

Part = dict[str, Any]


def answer_with_tools(
    tools: Sequence[Tool], choice: ToolChoice, rules: CallRules, form: Part | None
) -> Part | None:
    """What an answer may be; None for anything. The tools are those that may be called.

    `form` is what an answer in words has to look like, if it was asked for.
    """
    is_required = choice.mode == "required"
    loop: Part = {
        "tags": [_tag(tool.function, rules.form, is_required) for tool in tools],
        "at_least_one": is_required or form is not None,
        "stop_after_first": rules.is_single,
    }
    if is_required or form is not None:
        separator = "\n" if rules.form.closing else f"{rules.form.separators} "
        calls = loop | {"type": "tags_with_separator", "separator": separator}
        return calls if is_required else {"type": "or", "elements": [calls, form]}
    if any(tool.function.strict for tool in tools):
        return loop | {"type": "triggered_tags", "triggers": [rules.form.trigger]}
    return None


def behind_thoughts(answer: Part, is_thinking: bool) -> Part:
    """The same behind thoughts: those that the prompt has begun, or else the model may begin."""
    begin = "" if is_thinking else thinking.OPEN
    thoughts = {"type": "tag", "begin": begin, "content": {"type": "any_text"}}
    space = {"type": "regex", "pattern": r"\n{0,2}"}
    elements: list[Part] = [thoughts | {"end": thinking.CLOSE}, space]
    if is_thinking:
        return {"type": "sequence", "elements": [*elements, answer]}
    first = {"type": "optional", "content": {"type": "sequence", "elements": elements}}
    return {"type": "sequence", "elements": [first, answer]}


def enforced_schema(function: Function) -> Part:
    """The schema of the arguments, of an object that has what it lists and nothing else."""
    schema = function.schema_of_arguments
    is_empty = schema.get("properties") == {}
    return {"type": "object"} | ({"additionalProperties": False} if is_empty else {}) | schema


def _tag(function: Function, form: CallFormat, is_required: bool) -> Part:
    is_enforced = is_required or bool(function.strict)
    schema = enforced_schema(function) if is_enforced else {"type": "object"}
    content = {"type": "json_schema", "json_schema": schema}
    return {"type": "tag", "begin": form.head(function.name), "content": content, "end": form.tail}
