"""How the text of a request's choices is read: the rules, and a reader for each choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import thinking
from .call_reader import CallReader, CallRules
from .parts import Part, PlainReader, Reader, Reasoning
from .thinking import ThinkReader


@dataclass(frozen=True, slots=True)
class Thinking:
    """The model thinks before it answers.

    `is_open` when the prompt ends inside its thoughts, `is_hidden` when the client wants none.
    """

    is_open: bool = False
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """The default reads all text as the answer. `end_of_calls` is how an answer with calls ends."""

    thinking: Thinking | None = None
    calls: CallRules | None = None
    end_of_calls: Literal["stop", "tool_calls"] = "tool_calls"

    @property
    def tags(self) -> frozenset[str]:
        """Texts of special tokens that the reader has to see; all others are no text."""
        thoughts = {thinking.OPEN, thinking.CLOSE} if self.thinking else frozenset()
        return frozenset(thoughts) | (self.calls.form.tags if self.calls else frozenset())

    def reader(self) -> Reader:
        """A new one, for one choice."""
        answer = CallReader(self.calls) if self.calls else PlainReader()
        return ThoughtfulReader(self.thinking, answer) if self.thinking else answer


PLAIN = Reading()


class ThoughtfulReader:
    """Thoughts are apart; what follows them is for the `answer`'s reader."""

    def __init__(self, rules: Thinking, answer: Reader) -> None:
        self._is_hidden = rules.is_hidden
        self._thoughts = ThinkReader(rules.is_open)
        self._answer = answer

    @property
    def is_over(self) -> bool:
        return self._answer.is_over

    @property
    def is_reasoning(self) -> bool:
        return self._thoughts.is_inside

    @property
    def has_calls(self) -> bool:
        return self._answer.has_calls

    def push(self, text: str) -> list[Part]:
        return self._parts(*self._thoughts.push(text))

    def finish(self) -> list[Part]:
        return self._parts(*self._thoughts.finish()) + self._answer.finish()

    def _parts(self, thoughts: str, answer: str) -> list[Part]:
        parts: list[Part] = [Reasoning(thoughts)] if thoughts and not self._is_hidden else []
        return parts + (self._answer.push(answer) if answer else [])
