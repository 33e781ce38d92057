"""Regular expressions of ECMA-262, read by our own rules and written so that xgrammar obeys them.

xgrammar ignores lookaheads and inner anchors, and in JSON strings it puts out quotes and control
characters unescaped. So a pattern becomes a tree of character sets here, and what the tree cannot
say is refused by name. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise

_LAST = 0x10FFFF
MAX_COPIES = 64  # of what is counted, where the counts are written out
MAX_WRITTEN = 64 * 1024

_SURROGATES = (0xD800, 0xDFFF)
_CARET = 0x5E
_ONLY_CARET = (_CARET, _CARET)
Ranges = tuple[tuple[int, int], ...]


class GrammarError(ValueError):
    """A grammar that cannot be honoured, and why, in words for whoever sent it."""


@dataclass(frozen=True, slots=True)
class CharSet:
    """One character out of `ranges`: code points, ascending, without overlaps and surrogates."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Chain:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Any one of them."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times; `most` None is without end."""

    part: Node
    least: int
    most: int | None


Node = CharSet | Chain | Choice | Repeat


def char_set(ranges: Iterable[tuple[int, int]]) -> CharSet:
    """The characters in any of the ranges."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return CharSet(tuple(_without(merged, _SURROGATES)))


def complement(chars: CharSet) -> CharSet:
    """All other characters."""
    edges = [(-1, -1), *chars.ranges, (_LAST + 1, _LAST + 1)]
    return char_set((a[1] + 1, b[0] - 1) for a, b in pairwise(edges) if a[1] + 1 < b[0])


def intersection(chars: CharSet, others: CharSet) -> CharSet:
    """The characters in both."""
    both = [*complement(chars).ranges, *complement(others).ranges]
    return complement(char_set(both))


def _without(ranges: Iterable[tuple[int, int]], hole: tuple[int, int]) -> list[tuple[int, int]]:
    cut = []
    for low, high in ranges:
        below, above = (low, min(high, hole[0] - 1)), (max(low, hole[1] + 1), high)
        cut += [part for part in (below, above) if part[0] <= part[1]]
    return cut


ANY = CharSet(((0, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, _LAST)))
DIGIT = char_set([(0x30, 0x39)])
WORD = char_set([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
_BLANKS = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"
SPACE = char_set([(0x2000, 0x200A), *((ord(blank), ord(blank)) for blank in _BLANKS)])
DOT = complement(char_set([(10, 10), (13, 13), (0x2028, 0x2029)]))


def literal(text: str) -> Node:
    """Exactly this text."""
    return Chain(tuple(char_set([(ord(char), ord(char))]) for char in text))


def other_than(texts: Collection[str]) -> Node:
    """Every text but these, by their common beginnings."""
    heads = {text[0] for text in texts if text}
    options: list[Node] = [
        Chain(
            (
                char_set([(ord(head), ord(head))]),
                other_than({text[1:] for text in texts if text.startswith(head)}),
            )
        )
        for head in sorted(heads)
    ]
    others = complement(char_set((ord(head), ord(head)) for head in heads))
    options.append(Chain((others, Repeat(ANY, 0, None))))
    return Choice((*options, *([] if "" in texts else [Chain(())])))


_IN_STRING = char_set([(0x20, 0x21), (0x23, 0x5B), (0x5D, _LAST)])  # unescaped in a JSON string
_SHORT: dict[tuple[int, int | None], str] = {(0, None): "*", (1, None): "+", (0, 1): "?"}
_ESCAPES = {0x22: '"', 0x5C: "\\", 0x0A: "n", 0x0D: "r", 0x09: "t", 0x08: "b", 0x0C: "f"}


def written(node: Node) -> str:
    """The pattern for xgrammar, matched as a whole. Raises `GrammarError` if it gets too long."""
    return _bounded(_Writer(_plain).text(node))


def written_in_string(node: Node) -> str:
    """The pattern for the inside of a JSON string, where some characters are escaped.

    It holds a character outside ASCII, which makes xgrammar take the escapes as they stand.
    """
    return _bounded(_Writer(_in_string).text(node) + "\u00e9{0,0}")


def _bounded(text: str) -> str:
    if len(text) > MAX_WRITTEN:
        raise GrammarError("a regular expression is too large when its counts are written out")
    return text


class _Writer:
    """Writes a tree; `write_set` writes one character of it.

    xgrammar prepares the tokens that each place of a grammar allows, but not inside a counted
    group, where a mask then costs milliseconds. So only character classes keep their counts:

        (ab|c){2,4}   becomes   (ab|c)(ab|c)((ab|c)((ab|c))?)?
    """

    def __init__(self, write_set: Callable[[CharSet], str]) -> None:
        self._write_set = write_set

    def text(self, node: Node) -> str:
        match node:
            case CharSet():
                return self._write_set(node)
            case Chain(parts):
                return "".join(map(self.text, parts))
            case Choice(options):
                return f"({'|'.join(map(self.text, options))})"
            case Repeat():
                return self._repeated(node)

    def _repeated(self, node: Repeat) -> str:
        part, least, most = node.part, node.least, node.most
        text = self.text(part)
        if isinstance(part, CharSet) and text.startswith("["):
            return text + _SHORT.get((least, most), f"{{{least},{'' if most is None else most}}}")
        tail = "" if most is not None else f"({text})*"
        if isinstance(part, CharSet) and max(least, most or 0) > MAX_COPIES:
            further = None if most is None else most - MAX_COPIES
            plain = Repeat(intersection(part, _IN_STRING), max(0, least - MAX_COPIES), further)
            tail, least, most = self.text(plain), min(least, MAX_COPIES), MAX_COPIES
        num_optional = 0 if most is None else most - least
        optional = f"({text}" * num_optional + tail + ")?" * num_optional
        return f"({text})" * least + optional


def _plain(chars: CharSet) -> str:
    """A character class. xgrammar reads a caret that comes first as a negation, and a digit behind
    a control character as part of its number, so carets stand apart and control characters last.
    """
    ranges = sorted(chars.ranges, key=lambda each: (_is_control(each[1]), -each[0]))
    has_caret = any(low == _CARET for low, _ in ranges)
    ranges = [(low + (low == _CARET), high) for low, high in ranges if (low, high) != _ONLY_CARET]
    written = f"[{''.join(_range(*each) for each in ranges)}]" if ranges else ""
    return f"({'|'.join(filter(None, (_char(_CARET), written)))})" if has_caret else written


def _is_control(code: int) -> bool:
    return code < 0x20 or code == 0x7F


def _in_string(chars: CharSet) -> str:
    """Rare control characters are only written where nothing else is meant."""
    plain = intersection(chars, _IN_STRING)
    options = [_plain(plain)] if plain.ranges else []
    escaped = "".join(_range(ord(char), ord(char)) for char in _escaped(chars))
    options += [f"\\\\[{escaped}]"] if escaped else []
    if not options:
        codes = [code for low, high in chars.ranges for code in range(low, high + 1)]
        options = [f"\\\\u00{code >> 4}[{code & 15:x}{code & 15:X}]" for code in codes]
    return options[0] if len(options) == 1 else "(" + "|".join(options) + ")"


def _escaped(chars: CharSet) -> list[str]:
    held = intersection(chars, char_set((code, code) for code in _ESCAPES)).ranges
    codes = [code for low, high in held for code in range(low, high + 1)]
    return [_ESCAPES[code] for code in codes]


def _range(low: int, high: int) -> str:
    return _char(low) if low == high else f"{_char(low)}-{_char(high)}"


def _char(code: int) -> str:
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\u{{{code:X}}}"
