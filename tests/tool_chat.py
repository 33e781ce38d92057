"""A model folder whose template knows tools and thoughts, and the ways tests ask for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.server_harness import SPECIALS, build_model_folder

TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>Write <tool_call>"
    '{"name": ..., "arguments": ...}</tool_call>{% for tool in tools %}\n{{ tool | tojson }}'
    "{% endfor %}<|end|>{% endif %}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% for call in message.tool_calls %}{{ call | tojson }}{% endfor %}<|end|>"
    "{% if message['reasoning'] %}</think>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if thinks %}<think>\n{% endif %}{% endif %}"
)
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]


def build_tool_folder(folder: Path) -> Path:
    return build_model_folder(folder, TEMPLATE, [*SPECIALS, *TAGS])


def call(name: str = "get_weather", **arguments: Any) -> str:
    body = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>"


def joined(events: list[Any]) -> dict[int, dict[str, Any]]:
    """What a stream's chunks add up to, as messages by index with their finish reasons."""
    found: dict[int, dict[str, Any]] = {}
    for event in events[:-1]:
        for choice in event["choices"]:
            message = found.setdefault(choice["index"], {"content": "", "tool_calls": []})
            delta = choice["delta"]
            message["content"] += delta.get("content", "")
            for name in ("reasoning", "reasoning_content"):
                if name in delta:
                    message[name] = message.get(name, "") + delta[name]
            for piece in delta.get("tool_calls", []):
                _add(piece, message["tool_calls"])
            message["finish_reason"] = choice["finish_reason"]
    return found


def _add(piece: dict[str, Any], calls: list[dict[str, Any]]) -> None:
    """The first piece of a call says whose it is, the others only go on with the arguments."""
    if "id" in piece:
        assert set(piece) == {"index", "id", "type", "function"}
        assert piece["index"] == len(calls)
        assert piece["function"]["arguments"] == ""
        calls.append({key: piece[key] for key in ("id", "type", "function")})
    else:
        assert set(piece) == {"index", "function"}
        assert piece["index"] == len(calls) - 1
        assert set(piece["function"]) == {"arguments"}
        assert piece["function"]["arguments"]
        calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
