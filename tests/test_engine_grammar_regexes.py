"""Regular expressions: what is written for xgrammar means what ECMA-262 says, or is refused."""

from __future__ import annotations

import json
import re

import pytest
from grammar_walks import accepts, walks
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.grammar.regex_parser import MAX_CHARS, parse_whole
from engine.grammar.regexes import (
    MAX_COPIES,
    GrammarError,
    char_set,
    complement,
    literal,
    written,
)

# Patterns that Python reads as ECMA-262 does.
PATTERNS = [
    "abc",
    "^abc$",
    "a|bc|",
    "[a-c]{2,4}x{3}y{2,}",
    "a.c",
    "[^a]{1,3}",
    r"\d\w[\w.-]+",
    "é[^ü]",
    '"a"',
    r"a\\b",
    r"\t\n\r",
    "(?:ab|cd)+",
    "(?P<name>ab)?c",
    r"[\s\S]{2}",
    r"\u00e9\x41",
    "a*?b+?c??",
    "[-a^]",
    r"[^\]a]",
    r"[\^a]",
    r"[\b]",
    r"[\x00-\x1f]",
    "(a|b)*c{0}d",
    r"\(\d{3}\) \d{3}-\d{4}",
    "((a{1,3}|b){2}c){0,3}",
    "[!-/:-@[-`{-~]+",
    "(|a)(b|)",
    ".*x.*",
    "[a-z0-9]{1,90}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_of_a_pattern_matches_it(pattern: str) -> None:
    texts = walks("regex", pattern)
    assert texts
    for text in texts:
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    "pattern", [*PATTERNS, "^a", "a$", "^a|b$", r"^\n", '^"', r"^(\\|\"|\n)+$"]
)
def test_every_json_string_of_a_pattern_is_json_and_matches_it(pattern: str) -> None:
    """Quotes, backslashes and control characters are escaped."""
    texts = walks("json_schema", json.dumps({"type": "string", "pattern": pattern}))
    assert texts
    for text in texts:
        assert re.search(pattern, json.loads(text)), text


@settings(max_examples=60)
@given(st.sets(st.integers(1, 127), min_size=1, max_size=120))
def test_a_set_allows_its_characters_and_its_complement_the_others(codes: set[int]) -> None:
    """Carets, hyphens, brackets and control characters included."""
    inner = "".join(f"\\x{code:02x}" for code in codes)
    every = [chr(code) for code in range(1, 128)]
    is_in = [ord(char) in codes for char in every]
    assert accepts("regex", f"[{inner}]", *every) == is_in
    assert accepts("regex", f"[^{inner}]", *every) == [not each for each in is_in]


def test_sets_are_merged_and_without_surrogates() -> None:
    assert char_set([(5, 9), (1, 3), (4, 6)]).ranges == ((1, 9),)
    assert complement(char_set([(0, 0x10FFFE)])).ranges == ((0x10FFFF, 0x10FFFF),)
    assert char_set([(0xD000, 0xE000)]).ranges == ((0xD000, 0xD7FF), (0xE000, 0xE000))


texts = st.text('ab"\\é', max_size=4)


@settings(max_examples=40)
@given(st.sets(texts, min_size=1, max_size=5), texts)
def test_a_free_property_is_none_of_the_declared(names: set[str], candidate: str) -> None:
    """Not even spelled with escapes, so what is declared of a name holds."""
    schema = {
        "type": "object",
        "properties": {name: {"const": 2} for name in names},
        "additionalProperties": {"const": 1},
    }
    body = json.dumps({candidate: 1}, ensure_ascii=False)
    escaped = '{"' + "".join(f"\\u{ord(char):04x}" for char in candidate) + '": 1}'
    allowed = accepts("json_schema", json.dumps(schema), body, escaped)
    assert allowed == [candidate not in names, candidate == "" and "" not in names]


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("(?=a)b", "lookahead"),
        ("(?!a)b", "lookahead"),
        ("(?<=a)b", "lookbehind"),
        ("(?<!a)b", "lookbehind"),
        ("(?i)a", "a group"),
        ("(?>a)", "a group"),
        (r"\bab", r"'\\b'"),
        (r"a\B", r"'\\B'"),
        (r"(a)\1", r"'\\1'"),
        (r"(?<x>a)\k<x>", r"'\\k'"),
        (r"\p{L}", r"'\\p'"),
        (r"\Z", r"'\\Z'"),
        (r"\cA", r"'\\c'"),
        (r"\u{110000}", "no character"),
        (r"\ud800", "no character"),
        ("a^b", r"'\^'"),
        ("(^a)", r"'\^'"),
        ("a$b", r"'\$'"),
        ("(a$|b)", r"'\$'"),
        ("a{3,2}", "upper count"),
        ("a{,3}", r"'\{'"),
        ("a**", "quantifier"),
        ("a++", "quantifier"),
        ("*a", "nothing to repeat"),
        ("[]", "first in"),
        ("[^]", "first in"),
        ("[]a]", "first in"),
        (r"[^\x00-\u{10ffff}]", "without characters"),
        ("[a", r"without its '\]'"),
        ("(a", r"without its '\)'"),
        ("a)", r"unmatched '\)'"),
        ("a\\", "at the end"),
        ("[z-a]", "range"),
        ("[a-\\d]", "range"),
        ("(" * 40 + ")" * 40, "inside each other"),
        ("a" * (MAX_CHARS + 1), "longer than"),
        (f"(ab){{0,{MAX_COPIES + 1}}}", "groups up to"),
        ("((ab){50}){50}", "inside each other"),
        ("a{100001}", "characters up to"),
        ("(" + "." * 40 + "){64}", "too large"),
    ],
)
def test_what_xgrammar_would_ignore_or_get_wrong_is_refused(pattern: str, named: str) -> None:
    with pytest.raises(GrammarError, match=named):
        written(parse_whole(pattern))


def test_only_character_classes_keep_their_counts() -> None:
    assert written(parse_whole("[ab]{2,90}")).count("{2,90}") == 1
    assert written(parse_whole("(a|bc){1,3}")).count("[b][c]") == 3


def test_a_literal_is_only_itself() -> None:
    text = '^$.*+?()[]{}|\\/-"é'
    assert accepts("regex", re.escape(text), text, text + "x") == [True, False]
    assert written(literal("a^")) == "[a](\\u{5E})"
