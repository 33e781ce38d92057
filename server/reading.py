"""How the text of a request's choices is read: the rules, and a reader for each choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .parts import PlainReader, Reader


@dataclass(frozen=True, slots=True)
class Reading:
    """The default reads all text as the answer."""

    @property
    def tags(self) -> frozenset[str]:
        """Texts of special tokens that the reader has to see; all others are no text."""
        return frozenset()

    @property
    def end_of_calls(self) -> Literal["stop", "tool_calls"]:
        """The finish reason of an answer that ended with calls."""
        return "tool_calls"

    def reader(self) -> Reader:
        """A new one, for one choice."""
        return PlainReader()


PLAIN = Reading()
