"""From the items of a response request to chat messages.

An answer of the model's was one turn, however many items it made. In chat it is one message again,
so that the prompt continues the one in the cache:

    reasoning, message, function_call, function_call       ->  assistant
    function_call_output                                   ->  tool
    instructions, and system or developer messages at once ->  system

The last, because many templates take one system message, the first.
"""

from __future__ import annotations

from typing import Any

from .response_input import (
    AnyItem,
    FunctionCallItem,
    FunctionCallOutputItem,
    MessageItem,
    ReasoningItem,
)


class Turns:
    """Chat's `messages`, and in `names` what their places are called in the response request."""

    def __init__(self, instructions: str | None, items: list[AnyItem]) -> None:
        self.messages: list[dict[str, Any]] = []
        self.names: dict[str, str] = {}
        if instructions is not None:
            self._start("instructions", {"role": "system", "content": _parts([instructions])})
            self._name("content", "instructions")
        for index, item in enumerate(items):
            self._add(item, f"input.{index}")

    def _add(self, item: AnyItem, name: str) -> None:
        match item:
            case MessageItem(role="assistant"):
                self._continue_turn(name, is_call=False)
                self._append("content", _parts(item.content))
                self._name("content", f"{name}.content")
            case ReasoningItem():
                if item.content:
                    self._continue_turn(name, is_call=False)
                    self._add_thoughts(item.content)
            case FunctionCallItem():
                self._continue_turn(name, is_call=True)
                self._add_call(item, name)
            case FunctionCallOutputItem():
                self._start(name, {"role": "tool", "content": _parts(item.output)})
                self.messages[-1]["tool_call_id"] = item.call_id
                self._name("content", f"{name}.output")
                self._name("tool_call_id", f"{name}.call_id")
            case MessageItem(role="system" | "developer") if self._is_only_instructions:
                self._append("content", _parts(item.content))
            case MessageItem():
                self._start(name, {"role": item.role, "content": _parts(item.content)})

    def _add_thoughts(self, texts: list[str]) -> None:
        turn = self.messages[-1]
        earlier = [turn["reasoning_content"]] if "reasoning_content" in turn else []
        turn["reasoning_content"] = "\n".join([*earlier, *texts])

    def _add_call(self, item: FunctionCallItem, name: str) -> None:
        function = {"name": item.name, "arguments": item.arguments}
        self._append("tool_calls", [{"id": item.call_id, "type": "function", "function": function}])
        at = f"tool_calls.{len(self.messages[-1]['tool_calls']) - 1}"
        self._name(at, name)
        self._name(f"{at}.id", f"{name}.call_id")
        self._name(f"{at}.function", name)

    def _continue_turn(self, name: str, is_call: bool) -> None:
        """Have the assistant's turn last; text after text begins another one."""
        last = self.messages[-1] if self.messages else {}
        is_complete = "content" in last and "tool_calls" not in last and not is_call
        if last.get("role") != "assistant" or is_complete:
            self._start(name, {"role": "assistant"})

    @property
    def _is_only_instructions(self) -> bool:
        return len(self.messages) == 1 and self.names["messages.0"] == "instructions"

    def _start(self, name: str, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.names[f"messages.{len(self.messages) - 1}"] = name

    def _append(self, field: str, values: list[dict[str, Any]]) -> None:
        self.messages[-1].setdefault(field, []).extend(values)

    def _name(self, field: str, name: str) -> None:
        self.names[f"messages.{len(self.messages) - 1}.{field}"] = name


def _parts(texts: list[str]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]
