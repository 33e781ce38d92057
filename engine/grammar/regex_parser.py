"""Reads a regular expression of ECMA-262 into the tree of `regexes.py`, or refuses it by name.

Anchors are understood at the ends of the whole pattern and of its outermost alternatives. Imports
no torch.
"""

from __future__ import annotations

import re
from typing import NoReturn

from .regexes import (
    ANY,
    DIGIT,
    DOT,
    MAX_COPIES,
    SPACE,
    WORD,
    Chain,
    CharSet,
    Choice,
    GrammarError,
    Node,
    Repeat,
    char_set,
    complement,
)

MAX_CHARS = 4096
MAX_NESTING = 32
MAX_COUNT = 100_000  # of one character
MAX_PRODUCT = 1024  # of counts inside each other

_COUNT = re.compile(r"\{([0-9]{1,9})(?:(,)([0-9]{1,9})?)?\}")
_HEX = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\})")
_PAIR = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_NAMED = re.compile(r"\?P?<[A-Za-z_$][A-Za-z0-9_$]*>")
_QUANTIFIERS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_SETS = {"d": DIGIT, "w": WORD, "s": SPACE}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_ASSERTIONS = {
    "?=": "lookahead",
    "?!": "lookahead",
    "?<=": "lookbehind",
    "?<!": "lookbehind",
}


def parse_whole(pattern: str) -> Node:
    """The pattern for a whole text: anchors at its ends say nothing new. Raises `GrammarError`."""
    return Choice(tuple(body for body, _, _ in _Parser(pattern).alternatives()))


def parse_search(pattern: str) -> Node:
    """What texts a JSON Schema's pattern allows, as it is meant: whole, unless one end is anchored.

    `^a` allows every text that begins with a, `a$` every one that ends with it, `^a$` and `a` only
    a itself: all of them match the pattern.
    """
    anything = Repeat(ANY, 0, None)
    options: list[Node] = []
    for body, starts, ends in _Parser(pattern).alternatives():
        before, after = [anything] * (ends and not starts), [anything] * (starts and not ends)
        options.append(Chain((*before, body, *after)))
    return Choice(tuple(options))


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_CHARS:
            raise GrammarError(f"a regular expression is longer than {MAX_CHARS} characters")
        self._text = pattern
        self._at = 0
        self._depth = 0

    def alternatives(self) -> list[tuple[Node, bool, bool]]:
        """Each outermost alternative, and whether it is anchored at its start and at its end."""
        found = [self._anchored()]
        while self._takes("|"):
            found.append(self._anchored())
        if self._at < len(self._text):
            self._refuse("an unmatched ')'")
        for body, _, _ in found:
            check_counts(body)
        return found

    def _anchored(self) -> tuple[Node, bool, bool]:
        starts = self._takes("^")
        body = self._chain()
        return body, starts, self._takes("$")

    def _chain(self) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)$":
            parts.append(self._quantified(self._atom()))
        if self._takes_ahead("$") and self._text[self._at + 1 : self._at + 2] not in ("", "|"):
            self._refuse("'$' that is not at the end")
        if self._takes_ahead("$") and self._depth:
            self._refuse("'$' that is not at the end")
        return Chain(tuple(parts))

    def _atom(self) -> Node:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape(is_class=False)
        if char == ".":
            return DOT
        if char == "^":
            self._refuse("'^' that is not at the start")
        if char in "*+?{":
            self._refuse(f"'{char}' with nothing to repeat")
        return char_set([(ord(char), ord(char))])

    def _group(self) -> Node:
        self._open_group()
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._refuse(f"more than {MAX_NESTING} groups inside each other")
        options = [self._chain()]
        while self._takes("|"):
            options.append(self._chain())
        if not self._takes(")"):
            self._refuse("a '(' without its ')'")
        self._depth -= 1
        return Choice(tuple(options))

    def _open_group(self) -> None:
        """Pass over what follows the '(': nothing, `?:` or a name."""
        for start, name in _ASSERTIONS.items():
            if self._takes_ahead(start):
                self._refuse(f"{name}, '({start}',")
        if self._takes_ahead("?") and not self._takes("?:"):
            named = _NAMED.match(self._text, self._at)
            if named is None:
                self._refuse("a group that is none of '(', '(?:' and '(?<name>'")
            self._at = named.end()

    def _quantified(self, node: Node) -> Node:
        if not self._is_quantified():
            return node
        least, most = self._counts()
        if most is not None and most < least:
            self._refuse("a repetition whose upper count is under its lower one")
        self._takes("?")  # lazy: which texts match stays the same
        if self._is_quantified():
            self._refuse("a quantifier behind a quantifier")
        return Repeat(node, least, most)

    def _is_quantified(self) -> bool:
        return self._at < len(self._text) and (
            self._text[self._at] in _QUANTIFIERS or bool(_COUNT.match(self._text, self._at))
        )

    def _counts(self) -> tuple[int, int | None]:
        count = _COUNT.match(self._text, self._at)
        if count is None:
            return _QUANTIFIERS[self._next()]
        self._at = count.end()
        least = int(count[1])
        return least, least if not count[2] else int(count[3]) if count[3] else None

    def _class(self) -> CharSet:
        is_negated = self._takes("^")
        if self._takes_ahead("]"):
            self._refuse("']' first in a character class, which some read as its end,")
        ranges: list[tuple[int, int]] = []
        while not self._takes("]"):
            first = self._class_atom()
            is_range = self._takes_ahead("-") and not self._takes_ahead("-]")
            if not (is_range and _is_single(first)):
                ranges += first.ranges
                continue
            self._takes("-")
            last = self._class_atom()
            if not _is_single(last) or last.ranges[0] < first.ranges[0]:
                self._refuse("a character range that is not from a lower to a higher character")
            ranges.append((first.ranges[0][0], last.ranges[0][0]))
        chars = complement(char_set(ranges)) if is_negated else char_set(ranges)
        if not chars.ranges:
            self._refuse("a character class without characters")
        return chars

    def _class_atom(self) -> CharSet:
        char = self._next("a '[' without its ']'")
        return self._escape(is_class=True) if char == "\\" else char_set([(ord(char), ord(char))])

    def _escape(self, is_class: bool) -> CharSet:
        for pattern in (_PAIR, _HEX):
            if (number := pattern.match(self._text, self._at - 1)) is not None:
                self._at = number.end()
                return self._code_point(number)
        char = self._next("a '\\' at the end")
        if char.lower() in _SETS:
            return _SETS[char] if char.islower() else complement(_SETS[char.lower()])
        if char in _CONTROLS:
            return char_set([(_CONTROLS[char], _CONTROLS[char])])
        if is_class and char == "b":
            return char_set([(8, 8)])
        if char == "0" and not self._text[self._at : self._at + 1].isdigit():
            return char_set([(0, 0)])
        if char.isascii() and char.isalnum():
            self._refuse(f"the escape '\\{char}'")
        return char_set([(ord(char), ord(char))])

    def _code_point(self, number: re.Match[str]) -> CharSet:
        parts = [int(part, 16) for part in number.groups() if part]
        code = parts[0]
        if len(parts) == 2:
            code = 0x10000 + ((parts[0] & 0x3FF) << 10) + (parts[1] & 0x3FF)
        chars = char_set([(code, code)]) if code <= 0x10FFFF else CharSet(())
        if not chars.ranges:
            self._refuse("an escape that is no character")
        return chars

    def _next(self, lacking: str = "an end") -> str:
        if self._at >= len(self._text):
            self._refuse(lacking)
        self._at += 1
        return self._text[self._at - 1]

    def _takes(self, text: str) -> bool:
        taken = self._takes_ahead(text)
        self._at += len(text) if taken else 0
        return taken

    def _takes_ahead(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _refuse(self, what: str) -> NoReturn:
        raise GrammarError(
            f"{what} is not supported in a regular expression (at character {self._at + 1})"
        )


def _is_single(chars: CharSet) -> bool:
    return len(chars.ranges) == 1 and chars.ranges[0][0] == chars.ranges[0][1]


def check_counts(node: Node, around: int = 1) -> None:
    """Raises `GrammarError` where counts inside each other multiply to too many."""
    match node:
        case Chain(parts) | Choice(parts):
            for part in parts:
                check_counts(part, around)
        case Repeat(part, least, most):
            count = max(1, least if most is None else most)
            limit = MAX_COUNT if isinstance(part, CharSet) else MAX_COPIES
            if count > limit or around * min(count, MAX_COPIES) > MAX_PRODUCT:
                raise GrammarError(
                    f"a regular expression may count characters up to {MAX_COUNT} and groups up to "
                    f"{MAX_COPIES} times, inside each other {MAX_PRODUCT} times"
                )
            check_counts(part, around * count)
