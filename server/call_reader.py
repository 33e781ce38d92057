"""Finds tool calls in a choice's text while it comes; all that is no call stays text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from .call_formats import CallFormat, ObjectScanner, Steps, Trail, follow
from .parts import Part, Text, ToolCall


@dataclass(frozen=True, slots=True)
class CallRules:
    """A call is what has this form and names one of these; a `single` one ends the answer.

    `is_exact` when a grammar watches over calls that are written as usual: others are none then.
    `is_alone` when an answer is either calls or text: behind text there is none. `is_forced` when
    it can be nothing but calls: half of one at the end is not text.
    """

    form: CallFormat
    names: frozenset[str]
    is_single: bool = False
    is_exact: bool = False
    is_alone: bool = False
    is_forced: bool = False

    @property
    def first_steps(self) -> Steps:
        find = self.form.exact_first_steps if self.is_exact else self.form.first_steps
        return find(self.names)


class CallReader:
    """Reads one choice. What it waits for is its state:

        text -> arguments -> tail -> text     a call, whose arguments are passed on as they come
        text -> body -> tail -> text          a call between tags in another order: known at its end
        text -> body -> text                  an object between tags that is none

    A call begins when its name and the brace of its arguments are there, and ends with that brace.
    What is wrong inside the arguments stays in them. Whitespace around calls is not text.
    """

    is_reasoning = False

    def __init__(self, rules: CallRules) -> None:
        self.is_over = False
        self._rules = rules
        self._first_steps = rules.first_steps
        self._last_steps = rules.form.last_steps
        self._first_chars = {literal[0] for literal in self._first_steps["start"]}
        self._wait: Callable[[], bool] = self._wait_for_call
        self._held = ""
        self._seen = 0  # how much of `_held` the scanner has read
        self._scanner = ObjectScanner()
        self._tail_state = ""
        self._gap: str | None = ""  # what may be the whitespace around calls; None within text
        self._call: ToolCall | None = None
        self._parts: list[Part] = []

    @property
    def has_calls(self) -> bool:
        return self._call is not None and self._wait != self._wait_for_arguments

    def push(self, text: str) -> list[Part]:
        self._held += text
        while not self.is_over and self._wait():
            pass
        return self._taken()

    def finish(self) -> list[Part]:
        is_text = self._wait in (self._wait_for_call, self._wait_for_body)
        if is_text and not self.is_over and not self._rules.is_forced:
            self._say(len(self._held))
            if self._gap and self._call is None:
                self._parts.append(Text(self._gap))
        return self._taken()

    def _taken(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _wait_for_call(self) -> bool:
        """Says what is text before it. This and its like are false when they need more text."""
        for at, char in enumerate(self._held[: self._may_begin_before]):
            if char in self._first_chars:
                trail = follow(self._first_steps, self._held, at, "start")
                if trail.may_go_on:
                    self._say(at)
                    return False
                if self._enters(trail, at):
                    return True
        self._say(len(self._held))
        return False

    @property
    def _may_begin_before(self) -> int:
        """Where in `_held` a call may begin: everywhere, or not behind text."""
        if not self._rules.is_alone:
            return len(self._held)
        if self._gap is None:
            return 0
        return len(self._held) - len(self._held.lstrip(self._rules.form.between)) + 1

    def _enters(self, trail: Trail, at: int) -> bool:
        """Whether something other than text begins at `at`, which is then what is waited for."""
        form, first = self._rules.form, trail.taken.get("start")
        if trail.state in ("open", "bare"):
            self._say(at)
            name = trail.taken["name"].strip('"').partition('"')[0]
            self._begin_call(name, trail.state == "bare")
            self._held = self._held[trail.end - at - (trail.state == "open") :]
        elif form.opening and "object" in trail.taken:
            self._say(at)
            self._scanner, self._seen = ObjectScanner(), self._held.index("{")
            self._wait = self._wait_for_body
        elif form.marker and first == form.marker:
            self._held = self._held[:at] + self._held[at + len(form.marker) :]
        else:
            return False
        return True

    def _begin_call(self, name: str, is_bare: bool) -> None:
        index = 0 if self._call is None else self._call.index + 1
        self._call = ToolCall(index, f"call_{secrets.token_hex(12)}", name)
        self._parts.append(self._call)
        self._gap = ""
        self._scanner, self._wait = ObjectScanner(), self._wait_for_arguments
        if is_bare:
            self._add_arguments("{}")
            self._end_arguments("bare")

    def _add_arguments(self, text: str) -> None:
        assert self._call is not None, "a call has begun"
        if text:
            self._parts.append(replace(self._call, arguments=text))

    def _end_arguments(self, tail_state: str) -> None:
        self._tail_state, self._wait = tail_state, self._wait_for_tail

    def _wait_for_arguments(self) -> bool:
        end = self._scanner.end_in(self._held)
        self._add_arguments(self._held[:end])
        self._held = "" if end is None else self._held[end:]
        if end is not None:
            self._end_arguments("open")
        return end is not None

    def _wait_for_body(self) -> bool:
        end = self._scanner.end_in(self._held[self._seen :])
        if end is None:
            self._seen = len(self._held)
            return False
        end += self._seen
        named = _call_in(self._held[self._held.index("{") : end])
        if named is None or named[0] not in self._rules.names:
            self._say(end)
            self._wait = self._wait_for_call
            return True
        self._begin_call(named[0], is_bare=False)
        self._add_arguments(named[1])
        self._end_arguments("bare")
        self._held = self._held[end:]
        return True

    def _wait_for_tail(self) -> bool:
        trail = follow(self._last_steps, self._held, 0, self._tail_state)
        if trail.may_go_on:
            return False
        self._held = self._held[trail.end :]
        self.is_over = self._rules.is_single
        self._wait = self._wait_for_call
        return True

    def _say(self, until: int) -> None:
        """`_held` up to there is text, except that whitespace between calls is nothing."""
        text, self._held = self._held[:until], self._held[until:]
        if self._gap is not None:
            text = self._gap + text
            is_gap = not text.strip(self._rules.form.between)
            self._gap = text if is_gap else None
            if is_gap:
                return
        if text:
            self._parts.append(Text(text))


def _call_in(body: str) -> tuple[str, str] | None:
    """Name and arguments of a whole object; the arguments may be JSON text once more."""
    try:
        value = json.loads(body)
        arguments = value.get("arguments", value.get("parameters")) or {}
        text = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        text.encode()
        is_call = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return None
    name = value.get("name")
    return (name, text) if is_call and isinstance(name, str) else None
