"""Choices, grammars, structural tags and limits: what reaches xgrammar and what does not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grammar_walks import accepts, walks

from engine.grammar.regexes import GrammarError
from engine.grammar.sources import MAX_BYTES, Kind, source_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


A, B = ({"type": "const_string", "value": text} for text in "ab")
TAG = {"begin": "<f>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</f>"}


def tag(part: Any) -> str:
    return json.dumps({"type": "structural_tag", "format": part})


def test_a_choice_is_one_of_its_texts() -> None:
    options = ["yes", "no", 'a "quoted"\n\\text', "é😀\u2028", "\x07"]
    found = set(walks("choice", json.dumps(options), 60))
    assert found == set(options)
    assert accepts("choice", json.dumps(["a", "ab"]), "a", "ab", "abc", "") == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("options", [[], ["a", ""], ["a", 1], "a", {"a": 1}, None, ["a"] * 1001])
def test_choices_that_are_none_are_refused(options: object) -> None:
    with pytest.raises(GrammarError, match="choices must be"):
        source_of("choice", json.dumps(options))


@pytest.mark.parametrize(
    ("kind", "text", "named"),
    [
        ("json_schema", "{", "must be JSON"),
        ("json_schema", "[" * 100_000, "64|bytes"),
        ("json_schema", "[" * 60_000, "must be JSON"),
        ("choice", "yes", "must be JSON"),
        ("regex", "a\0", "U[+]0000"),
        ("ebnf", 'root ::= "' + "a" * MAX_BYTES + '"', "bytes"),
    ],
)
def test_what_is_too_large_or_no_json_is_refused(kind: Kind, text: str, named: str) -> None:
    with pytest.raises(GrammarError, match=named):
        source_of(kind, text)


def test_a_grammar_in_llama_cpps_notation() -> None:
    grammar = 'root ::= item ("," item)*  # a comment\nitem ::= [a-c]+ | "\\"" [^"]* "\\""'
    assert accepts("ebnf", grammar, "ab,c", '"x y",a', "", "d") == [True, True, False, False]


@pytest.mark.parametrize(
    ("part", "yes", "no"),
    [
        ({"type": "const_string", "value": "ab"}, "ab", "a"),
        ({"type": "regex", "pattern": "^[^a]{2}$"}, "bc", "ab"),
        ({"type": "grammar", "grammar": 'root ::= "x"+'}, "xxx", ""),
        ({"type": "json_schema", "json_schema": SCHEMA}, '{"a": 1}', '{"a":  1}'),
        ({"type": "sequence", "elements": [{"type": "optional", "content": A}, B]}, "b", "a"),
        ({"type": "or", "elements": [A, B]}, "b", "ab"),
        ({"type": "repeat", "min": 1, "max": 2, "content": A}, "aa", "aaa"),
        ({"type": "star", "content": B}, "", "a"),
        (
            {"type": "triggered_tags", "triggers": ["<f"], "tags": [TAG]},
            'text <f>{"a":1}</f> more',
            "text <f>1</f>",
        ),
        (
            {"type": "tags_with_separator", "tags": [TAG], "separator": ";", "at_least_one": True},
            '<f>{"a":1}</f>;<f>{"a":2}</f>',
            "",
        ),
    ],
)
def test_structural_tags_allow_what_their_parts_do(part: Any, yes: str, no: str) -> None:
    assert accepts("structural_tag", tag(part), yes, no) == [True, False]


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ([], "'format'"),
        ({"structures": [], "triggers": []}, "'format'"),
        ({"type": "x", "format": {"type": "const_string", "value": "a"}}, "'type'"),
        ({"format": {"type": "token", "token": 5}}, "'type'"),
        ({"format": {"type": ["x"]}}, "'type'"),
        ({"format": "x"}, "'type'"),
        ({"format": {"type": "const_string", "value": "a", "extra": 1}}, "'value'"),
        ({"format": {"type": "const_string"}}, "'value'"),
        ({"format": {"type": "const_string", "value": 3}}, "string"),
        ({"format": {"type": "any_text", "max_tokens": 3}}, "'excludes'"),
        ({"format": {"type": "any_text", "excludes": "x"}}, "list"),
        ({"format": {"type": "regex", "pattern": "(?=a)"}}, "lookahead"),
        ({"format": {"type": "json_schema", "json_schema": {"not": {}}}}, "'not'"),
        ({"format": {"type": "json_schema", "json_schema": SCHEMA, "style": "x"}}, "'json_schema'"),
        ({"format": {"type": "sequence", "elements": []}}, "parts"),
        ({"format": {"type": "repeat", "min": 1, "max": 2000, "content": {}}}, "1000"),
        ({"format": {"type": "tags_with_separator", "tags": [], "separator": ","}}, "parts"),
    ],
)
def test_structural_tags_with_anything_unknown_are_refused(document: Any, named: str) -> None:
    with pytest.raises(GrammarError, match=named):
        source_of("structural_tag", json.dumps(document))
