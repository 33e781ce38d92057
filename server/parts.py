"""What the text of one choice is made of, whatever endpoint words it: text, reasoning, tool calls.

A `Reader` takes a choice's text as it comes, in pieces of any size, and says which part each
character belongs to. Every split of the same text gives the same parts once neighbours are joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """Some of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Some of what the model thought before it."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call begins, or gets more of its arguments' JSON text.

    The first part of a call has no `arguments`, each later one at least one character. Calls come
    one after the other; `index` counts them from 0 within a choice, `id` and `name` are the call's.
    """

    index: int
    id: str
    name: str
    arguments: str = ""

    @property
    def is_start(self) -> bool:
        return not self.arguments


Part = Text | Reasoning | ToolCall


class Reader(Protocol):
    """Reads one choice. What may still become something else is held back until it is certain."""

    @property
    def is_over(self) -> bool:
        """True when the choice ends here, whatever the model would say next."""
        ...

    @property
    def is_reasoning(self) -> bool:
        """True while the answer itself has not begun."""
        ...

    @property
    def has_calls(self) -> bool:
        """True when there is a call, and the last one is complete."""
        ...

    def push(self, text: str) -> list[Part]: ...

    def finish(self) -> list[Part]:
        """What was held back, at the end of the text."""
        ...


class PlainReader:
    """All text is the answer."""

    is_over = is_reasoning = has_calls = False

    def push(self, text: str) -> list[Part]:
        return [Text(text)] if text else []

    def finish(self) -> list[Part]:
        return []


@dataclass(slots=True)
class Said:
    """A choice's parts put together: `calls` have their whole arguments."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)


def put_together(parts: Iterable[Part]) -> Said:
    said = Said()
    for part in merge_neighbours(parts):
        match part:
            case Text():
                said.text += part.text
            case Reasoning():
                said.reasoning += part.text
            case ToolCall() if part.is_start:
                said.calls.append(part)
            case ToolCall():
                call = said.calls[-1]
                said.calls[-1] = replace(call, arguments=call.arguments + part.arguments)
    return said


def merge_neighbours(parts: Iterable[Part]) -> list[Part]:
    """The same with neighbours of one kind joined; the start of a call stays by itself."""
    merged: list[Part] = []
    for part in parts:
        match merged[-1] if merged else None, part:
            case (Text(before), Text(text)):
                merged[-1] = Text(before + text)
            case (Reasoning(before), Reasoning(text)):
                merged[-1] = Reasoning(before + text)
            case (ToolCall() as call, ToolCall()) if call.arguments and part.arguments:
                merged[-1] = replace(call, arguments=call.arguments + part.arguments)
            case _:
                merged.append(part)
    return merged
