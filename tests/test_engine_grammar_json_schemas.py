"""Every text of a schema's grammar validates against it; what could not be kept to is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from grammar_walks import accepts, walks
from jsonschema import Draft202012Validator, FormatChecker
from random_schemas import random_schema

from engine.grammar.json_schemas import MAX_DEPTH, normalized
from engine.grammar.regexes import GrammarError
from engine.grammar.schema_leaves import MAX_VALUES
from engine.grammar.string_formats import FORMATS

STRING, INTEGER, BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
CHECKED_FORMATS = FormatChecker(["date", "email", "ipv4", "ipv6", "uuid"])


def check(schema: Any, count: int = 20) -> list[str]:
    """Texts of the schema's grammar, all of which validate."""
    validator = Draft202012Validator(schema, format_checker=CHECKED_FORMATS)
    texts = walks("json_schema", json.dumps(schema), count)
    for text in texts:
        validator.validate(json.loads(text))
    return texts


SCHEMAS: list[Any] = [
    True,
    {},
    {"type": "object"},
    {"type": "array"},
    {"type": "number"},
    {"type": ["string", "integer", "null"], "minimum": 5, "maxLength": 2},
    {"minimum": 3},
    {"pattern": "^a$"},
    {"minItems": 2},
    {"required": ["a"]},
    {"type": "string", "minLength": 2, "maxLength": 6},
    {"type": "string", "minLength": 70, "maxLength": 75},
    {"type": "integer", "minimum": -17, "maximum": 230},
    {"type": "integer", "minimum": 0.5, "exclusiveMaximum": 3},
    {"type": "integer", "multipleOf": 7},
    {"type": "integer", "multipleOf": 7, "minimum": 3, "maximum": 50},
    {"type": "integer", "minimum": 1 - 2**63, "maximum": 2**63 - 1},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "minimum": -0.000001, "maximum": 0.000001},
    {"type": "number", "minimum": 1e15},
    {"type": "object", "properties": {"a": STRING, "b": INTEGER}, "required": ["b"]},
    {
        "type": "object",
        "properties": {"a": STRING},
        "required": ["z"],
        "additionalProperties": INTEGER,
    },
    {"type": "object", "properties": {"a": STRING}, "additionalProperties": True},
    {"type": "object", "properties": {"a": STRING, "b": INTEGER, "c": BOOLEAN}, "minProperties": 2},
    {"type": "object", "properties": {"a": STRING, "b": INTEGER, "c": BOOLEAN}, "maxProperties": 1},
    {"type": "object", "minProperties": 1, "maxProperties": 2, "additionalProperties": INTEGER},
    {"type": "object", "patternProperties": {"^x[a-z]": INTEGER}, "properties": {"a": STRING}},
    {"type": "object", "propertyNames": {"pattern": "^[a-z]{1,3}$"}},
    {"type": "object", "propertyNames": {"enum": ["x", 'y"']}, "additionalProperties": INTEGER},
    {
        "type": "object",
        "unevaluatedProperties": False,
        "properties": {'a"b': STRING, "é\n": INTEGER},
    },
    {"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 3},
    {"type": "array", "prefixItems": [INTEGER, True], "items": BOOLEAN, "minItems": 3},
    {"type": "array", "prefixItems": [INTEGER, STRING], "maxItems": 1},
    {"type": "array", "items": False},
    {"enum": [1, 2.5, 'a/b"c\\d\né\u2028\x7f😀', None, True, {"x": [1]}, 1e300, -0.0, 1e-7]},
    {"type": ["integer", "null"], "const": None},
    {"anyOf": [STRING, {"type": "object", "properties": {"a": INTEGER}}]},
    {"oneOf": [STRING, INTEGER]},
    {"oneOf": [{"const": 1}, {"enum": [2, "1"]}]},
    {
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "$defs": {
            name: {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]}
            for name in "ab"
        },
    },
    {"allOf": [{"$ref": "#/$defs/a~1b%20"}], "default": 3, "$defs": {"a/b ": INTEGER}},
    {"type": "object", "properties": {"more": {"$ref": "#"}}, "title": "t", "x-unknown": 1},
    {"$ref": "#/$defs/a/anyOf/0", "$defs": {"a": {"anyOf": [INTEGER]}}},
    *({"type": "string", "format": name} for name in FORMATS),
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_every_text_validates(schema: Any) -> None:
    assert check(schema)


def test_every_text_of_random_schemas_validates() -> None:
    """Those that are refused count for nothing, and must not be most."""
    num_checked = 0
    for seed in range(250):
        schema = random_schema(random.Random(seed))
        try:
            normalized(schema)
        except GrammarError:
            continue
        check(schema, count=4)
        num_checked += 1
    assert num_checked > 150


OPEN = {"type": "object", "additionalProperties": True}
REFUSED: dict[str, Any] = {
    "not": {"not": STRING},
    "if": {"if": STRING, "then": {"maxLength": 3}},
    "then": {"then": STRING},
    "else": {"else": STRING},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": True}},
    "dependencies": {"type": "object", "dependencies": {"a": ["b"]}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": INTEGER},
    "minContains": {"type": "array", "minContains": 2},
    "maxContains": {"type": "array", "maxContains": 2},
    "additionalItems": {"type": "array", "additionalItems": False},
    "nullable": {"type": "string", "nullable": True},
    "divisibleBy": {"type": "integer", "divisibleBy": 2},
    "disallow": {"disallow": "string"},
    "extends": {"extends": STRING},
    "$dynamicRef": {"$dynamicRef": "#a"},
    "$recursiveRef": {"$recursiveRef": "#"},
    "minimum": {"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": INTEGER}},
    "minLength": {"anyOf": [STRING, INTEGER], "minLength": 3},
    "required": {"allOf": [OPEN], "required": ["a"]},
    "allOf": {"allOf": [STRING, {"maxLength": 3}]},
    "oneOf": {"oneOf": [INTEGER, {"type": "number"}]},
    "$ref": {"$ref": "http://example.org/schema"},
    "format": {"type": "string", "format": "foo"},
    "pattern": {"type": "string", "format": "date", "pattern": "^1"},
    "maxLength": {"type": "string", "pattern": "^a", "maxLength": 3},
    "multipleOf": {"type": "number", "multipleOf": 0.5},
    "maximum": {"type": "number", "maximum": 1e-9},
    "exclusiveMinimum": {"type": "number", "exclusiveMinimum": 1e16},
    "patternProperties": {"patternProperties": {"^a": INTEGER, "b$": STRING}},
    "additionalProperties": {"patternProperties": {"^a": INTEGER}, "additionalProperties": STRING},
    "unevaluatedProperties": {"patternProperties": {"^a": INTEGER}, "unevaluatedProperties": True},
    "propertyNames": {"properties": {"a": STRING}, "propertyNames": {"maxLength": 3}},
    "minProperties": {"type": "object", "minProperties": 2},
    "maxProperties": {"properties": {f"p{i}": STRING for i in range(70)}, "maxProperties": 3},
}


@pytest.mark.parametrize("keyword", REFUSED)
def test_a_keyword_that_would_be_ignored_is_refused_by_name_and_place(keyword: str) -> None:
    schema = {"type": "object", "properties": {"outer": REFUSED[keyword]}}
    schema |= {"$defs": REFUSED[keyword].pop("$defs", {})}
    with pytest.raises(GrammarError, match=rf"'{keyword.replace('$', '[$]')}'.*#/properties/outer"):
        normalized(schema)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (False, "object or true"),
        (3, "object or true"),
        ({"anyOf": [False]}, "object or true"),
        ({"anyOf": []}, "'anyOf'"),
        ({"enum": []}, "'enum'"),
        ({"enum": list(range(MAX_VALUES + 1))}, "'enum'"),
        ({"anyOf": [{"enum": list(range(600))}] * 2}, "values in all"),
        ({"type": "string", "enum": ["a", 1]}, "'type'"),
        ({"const": 2**63}, "64 bits"),
        ({"type": "foo"}, "'type'"),
        ({"type": []}, "'type'"),
        ({"type": [["string"]]}, "'type'"),
        ({"type": "integer", "minimum": True}, "'minimum'"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "within its bounds"),
        ({"type": "integer", "minimum": 1, "maximum": 3, "multipleOf": 7}, "no multiple"),
        ({"type": "integer", "minimum": 2**64}, "64 bits"),
        ({"type": "number", "minimum": 5, "maximum": 3}, "within its bounds"),
        ({"type": "number", "exclusiveMinimum": 5, "maximum": 5}, "within its bounds"),
        ({"type": "integer", "multipleOf": 0}, "'multipleOf'"),
        ({"type": "integer", "multipleOf": 7, "minimum": 3}, "'multipleOf'"),
        ({"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 10**6}, "'multipleOf'"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "'minLength'"),
        ({"type": "string", "maxLength": -1}, "'maxLength'"),
        ({"type": "string", "pattern": 3}, "'pattern'"),
        ({"type": "string", "pattern": "(?=a)"}, "lookahead"),
        ({"properties": 3}, "'properties'"),
        ({"required": [3]}, "'required'"),
        ({"required": ["a"], "additionalProperties": False}, "'required'"),
        ({"patternProperties": {"^a": True}, "properties": {"ab": STRING}}, "'patternProperties'"),
        ({"propertyNames": INTEGER}, "propertyNames"),
        ({"items": [INTEGER]}, "'items'"),
        ({"prefixItems": [INTEGER], "minItems": 2}, "'minItems'"),
        ({"properties": {"a": STRING}, "minProperties": 2}, "so many"),
        (
            {"properties": {"a" * 70: STRING}, "additionalProperties": True},
            "'additionalProperties'",
        ),
        ({"$ref": "#/$defs/a", "$defs": {}}, "points to nothing"),
        ({"$ref": 3}, "'[$]ref'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "itself"),
        ({"properties": {f"p{i}": {} for i in range(600)}}, "512 properties"),
        ({"oneOf": [{"const": i} for i in range(70)]}, "'oneOf'"),
    ],
    ids=str,
)
def test_what_is_no_schema_or_allows_nothing_is_refused(schema: Any, named: str) -> None:
    with pytest.raises(GrammarError, match=named):
        normalized(schema)


def test_depth_and_size_are_bounded() -> None:
    deep: Any = STRING
    for _ in range(MAX_DEPTH + 1):
        deep = {"type": "array", "items": deep}
    with pytest.raises(GrammarError, match="levels deep"):
        normalized(deep)
    with pytest.raises(GrammarError, match="subschemas"):
        normalized({"anyOf": [{"anyOf": [STRING] * 50}] * 50})


def test_names_that_are_not_plain_are_not_repeated() -> None:
    with pytest.raises(GrammarError, match=r"#/properties/\.\.\."):
        normalized({"properties": {"<script>\n": {"not": {}}}})


def test_json_has_at_most_one_blank_between_tokens() -> None:
    """So no model can spend its tokens on blanks."""
    schema = json.dumps(
        {"type": "object", "properties": {"a": {"type": "array", "items": INTEGER}}}
    )
    allowed = ['{"a":[1,2]}', '{"a": [1, 2]}', '{\n"a" : [ 1 , 2 ] }', "{}", "{ }"]
    refused = ['{  "a":[1]}', '{"a":  [1]}', ' {"a":[1]}', '{"a":[1]} ', '{"a":[1,  2]}', "{  }"]
    assert accepts("json_schema", schema, *allowed, *refused) == [True] * 5 + [False] * 6
    nested = ['{"a": {"b": [1, {}]}}', '{"a":  1}', '{"a": {"b":  1}}', "[]", "1"]
    assert accepts("json_object", "", *nested) == [True, False, False, False, False]


def test_properties_come_in_the_schemas_order_and_no_others_unless_it_says_so() -> None:
    schema = json.dumps({"type": "object", "properties": {"b": INTEGER, "a": INTEGER}})
    candidates = ['{"b":1,"a":2}', '{"a":2}', '{"a":2,"b":1}', '{"b":1,"c":3}']
    assert accepts("json_schema", schema, *candidates) == [True, True, False, False]


def test_counted_strings_may_hold_escapes_at_first() -> None:
    schema = json.dumps({"type": "string", "maxLength": 100})
    candidates = ['"a\\"\\n\\\\é"', '"' + "a" * 100 + '"', '"' + "a" * 101 + '"', '"\t"']
    assert accepts("json_schema", schema, *candidates) == [True, True, False, False]
