r"""Tells a model of its tools in words, where its chat template has none for them.

The first message gets the text below: a system message, which is put in front where there is none,
or a user's, if the template refuses that. Calls and results of earlier turns become what the model
would have written, and a user's message between tags:

    assistant  Let me see.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>
    user       <tool_response>\n12\n</tool_response>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .call_formats import CallFormat

_TEXT = """\
You can call functions. Each line between <tools> and </tools> describes one as JSON:
<tools>
{tools}
</tools>
To call a function, write its name and its arguments as one JSON object in this form, and nothing \
behind it:
{example}
For several calls, write one such object after the other. The results come back to you between \
<tool_response> and </tool_response>. When no function is needed, answer in plain words."""


def in_words(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    form: CallFormat,
    knows_system: bool,
) -> list[dict[str, Any]]:
    """The conversation as messages of system, user and assistant with nothing but text."""
    told: list[dict[str, Any]] = []
    for before, message in zip([None, *messages], messages, strict=False):
        if message["role"] != "tool":
            told.append(_with_calls_in_words(message, form))
        elif before is not None and before["role"] == "tool":
            # Results of one turn are one message: many templates want turns to alternate.
            told[-1]["content"] += f"\n{_result(message)}"
        else:
            told.append({"role": "user", "content": _result(message)})
    if not tools:
        return told
    text = text_of(tools, form)
    if told[0]["role"] in ("system", "developer"):
        told[0]["content"] = f"{told[0]['content']}\n\n{text}".lstrip()
    elif knows_system:
        told.insert(0, {"role": "system", "content": text})
    else:
        told[0]["content"] = f"{text}\n\n{told[0]['content']}"
    return told


def text_of(tools: Sequence[dict[str, Any]], form: CallFormat) -> str:
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return _TEXT.format(tools=lines, example=call_text("name of the function", {}, form))


def call_text(name: str, arguments: object, form: CallFormat) -> str:
    body = json.dumps({"name": name, form.arguments_key: arguments}, ensure_ascii=False)
    return "\n".join(text for text in (form.opening, body, form.closing) if text)


def _with_calls_in_words(message: dict[str, Any], form: CallFormat) -> dict[str, Any]:
    told = {key: value for key, value in message.items() if key != "tool_calls"}
    functions = [call["function"] for call in message.get("tool_calls", [])]
    calls = [call_text(each["name"], each["arguments"], form) for each in functions]
    told["content"] = "\n".join(text for text in (message["content"], *calls) if text)
    return told


def _result(message: dict[str, Any]) -> str:
    return f"<tool_response>\n{message['content']}\n</tool_response>"
