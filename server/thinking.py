"""Tells what a model thinks from what it answers: `<think>` ... `</think>` at the beginning."""

from __future__ import annotations

from enum import Enum, auto

from .detokenizer import overlap

OPEN, CLOSE = "<think>", "</think>"


class _State(Enum):
    BEFORE = auto()
    INSIDE = auto()
    BEHIND = auto()  # whitespace between the thoughts and the answer
    ANSWER = auto()


class ThinkReader:
    """Splits one choice's text; whitespace around the thoughts belongs to neither side.

    `starts_inside` says that the prompt has opened the thoughts already; then a second opening tag
    does no harm. Without one, text that does not begin with it is all answer.
    """

    def __init__(self, starts_inside: bool) -> None:
        self._starts_inside = starts_inside
        self._state = _State.BEFORE
        self._held = ""
        self._space: str | None = None  # behind the thoughts so far; None before the first

    @property
    def is_inside(self) -> bool:
        return self._state is _State.INSIDE or (
            self._state is _State.BEFORE and self._starts_inside
        )

    def push(self, text: str) -> tuple[str, str]:
        """What is now certain: thoughts, and answer."""
        self._held += text
        if self._state is _State.BEFORE:
            self._begin()
        thoughts = self._inside() if self._state is _State.INSIDE else ""
        if self._state is _State.BEHIND:
            self._held = self._held.lstrip()
            self._state = _State.ANSWER if self._held else _State.BEHIND
        answer = self._take(len(self._held)) if self._state is _State.ANSWER else ""
        return thoughts, answer

    def finish(self) -> tuple[str, str]:
        """What was held back, at the end of the text."""
        if self.is_inside:
            return self._thoughts(self._take(len(self._held))), ""
        return "", self._take(len(self._held))

    def _begin(self) -> None:
        body = self._held.lstrip()
        if body.startswith(OPEN):
            self._state, self._held = _State.INSIDE, body[len(OPEN) :]
        elif not OPEN.startswith(body):
            self._state = _State.INSIDE if self._starts_inside else _State.ANSWER

    def _inside(self) -> str:
        before, tag, behind = self._held.partition(CLOSE)
        if tag:
            self._state, self._held = _State.BEHIND, behind
            return self._thoughts(before)
        return self._thoughts(self._take(len(before) - overlap(before, CLOSE)))

    def _thoughts(self, text: str) -> str:
        """`text` without whitespace at its end, which is kept for what may follow."""
        text = text.lstrip() if self._space is None else self._space + text
        body = text.rstrip()
        if body or self._space is not None:
            self._space = text[len(body) :]
        return body

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken
