"""How models write tool calls as text, and the matcher that finds where one begins.

    hermes        <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>
    llama3_json   {"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}

A beginning is a row of literals with whitespace between them. Since the literals are known, of any
text it is known at its first wrong character that it begins no call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

MAX_SPACE = 32  # between two literals; more is no call
_SPACE = " \t\n\r"

Steps = Mapping[str, Mapping[str, str]]  # state -> literal -> the state behind it


@dataclass(frozen=True, slots=True)
class Trail:
    """How far a text follows some steps: `state` is the last one reached, `end` where that was.

    It `may_go_on` when the text ended before it went wrong. `taken` are the literals by state.
    """

    state: str
    end: int
    may_go_on: bool
    taken: Mapping[str, str] = field(default_factory=dict)


def follow(steps: Steps, text: str, at: int, state: str) -> Trail:
    """Follow `steps` from `state` as long as `text` does; a state without steps is the last."""
    taken: dict[str, str] = {}
    while state in steps:
        begin = _skip_space(text, at)
        if begin - at > MAX_SPACE:
            return Trail(state, at, False, taken)
        for literal, behind in steps[state].items():
            if text.startswith(literal, begin):
                taken[state] = literal
                at, state = begin + len(literal), behind
                break
        else:
            rest = text[begin:]
            may_go_on = any(literal.startswith(rest) for literal in steps[state])
            return Trail(state, at, may_go_on, taken)
    return Trail(state, at, False, taken)


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


@dataclass(frozen=True, slots=True)
class CallFormat:
    """What stands around the name and the arguments of a call.

    `marker` is a special token that may stand before a call and means nothing alone. Between calls
    there may be whitespace and `separators`. Where `has_tags`, what stands between them may be any
    JSON object with a name and arguments in it.
    """

    name: str
    opening: str
    closing: str
    arguments_key: str
    separators: str = ""
    marker: str = ""

    @property
    def tags(self) -> frozenset[str]:
        return frozenset({self.opening, self.closing, self.marker} - {""})

    def head(self, name: str) -> str:
        """How a call begins when it is written as the model's template writes it."""
        return f'{self._begin}{name}", "{self.arguments_key}": '

    @property
    def tail(self) -> str:
        """How it ends then."""
        return "}\n" + self.closing if self.closing else "}"

    @property
    def trigger(self) -> str:
        """What only a call begins with, if it is written so."""
        return self.opening or self._begin

    @property
    def _begin(self) -> str:
        gap = "\n" if self.opening else ""
        return f'{self.opening}{gap}{{"name": "'

    @property
    def between(self) -> str:
        return _SPACE + self.separators

    def first_steps(self, names: Collection[str]) -> Steps:
        """From "start" to "open", behind the brace of the arguments, or to "bare": none follow."""
        object_begins = {"{": "key"}
        steps = {
            "start": {self.opening: "object"} if self.opening else object_begins,
            "object": object_begins,
            "key": {'"name"': "name:", '"type"': "type:"},
            "type:": {":": "type"},
            "type": {'"function"': "type,"},
            "type,": {",": "name key"},
            "name key": {'"name"': "name:"},
            "name:": {":": "name"},
            "name": {f'"{name}"': "behind name" for name in names},
            "behind name": {",": "arguments key", "}": "bare"},
            "arguments key": {'"arguments"': "arguments:", '"parameters"': "arguments:"},
            "arguments:": {":": "arguments"},
            "arguments": {"{": "open"},
        }
        if self.marker:
            steps["start"] |= {self.marker: "object"}
        return steps

    def exact_first_steps(self, names: Collection[str]) -> Steps:
        """The same for calls that are written as `head` says."""
        names_behind = {f'{name}", "{self.arguments_key}": {{': "open" for name in names}
        return {"start": {self._begin: "name"}, "name": names_behind}

    @property
    def last_steps(self) -> Steps:
        """From "open", behind the arguments, over "bare", behind the whole object, to "end"."""
        behind = {self.closing: "end"} if self.closing else {}
        return {"open": {"}": "bare" if behind else "end"}} | ({"bare": behind} if behind else {})


HERMES = CallFormat("hermes", "<tool_call>", "</tool_call>", "arguments")
LLAMA3_JSON = CallFormat("llama3_json", "", "", "parameters", ";", "<|python_tag|>")
FORMATS = {form.name: form for form in (HERMES, LLAMA3_JSON)}


class ObjectScanner:
    """Finds the end of a JSON object, which is read from its first brace on."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def end_in(self, text: str) -> int | None:
        """How much of `text`, which goes on where the last one ended, still is the object."""
        for index, char in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = char == "\\"
                self._is_string = char != '"'
            elif char == '"':
                self._is_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None
