"""Structured output over HTTP: every dialect means one grammar, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.server_harness import SPECIALS, Running, build_model_folder, running_server

SCHEMA = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
TEXT = json.dumps(SCHEMA)
NAMED = {"name": "bird", "schema": SCHEMA}
TAG = {"format": {"type": "const_string", "value": "a"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    specials = [*SPECIALS, "<tool_call>"]
    folder = build_model_folder(tmp_path_factory.mktemp("model") / "tiny", specials=specials)
    with running_server(folder, model_len=1024) as running:
        yield running


def formatted(**fields: Any) -> dict[str, Any]:
    return {"response_format": fields}


def structured(**fields: Any) -> dict[str, Any]:
    return {"structured_outputs": fields}


ASKED: list[tuple[dict[str, Any], str]] = [
    (formatted(type="json_object"), "json_object "),
    (formatted(type="json_schema", json_schema=NAMED), f"json_schema {TEXT}"),
    (
        formatted(type="json_schema", json_schema=NAMED | {"strict": True, "description": "x"}),
        f"json_schema {TEXT}",
    ),
    (formatted(type="json_schema", json_schema={"name": "a", "schema": True}), "json_schema true"),
    (structured(json=SCHEMA), f"json_schema {TEXT}"),
    (structured(json=TEXT), f"json_schema {TEXT}"),
    (structured(regex="a+"), "regex a+"),
    (structured(choice=["a", "b"]), 'choice ["a", "b"]'),
    (structured(grammar='root ::= "a"'), 'ebnf root ::= "a"'),
    (structured(json_object=True), "json_object "),
    (structured(structural_tag=TAG), f"structural_tag {json.dumps(TAG)}"),
    (structured(structural_tag=json.dumps(TAG)), f"structural_tag {json.dumps(TAG)}"),
    (structured(regex="a", disable_any_whitespace=False, whitespace_pattern=None), "regex a"),
    ({"guided_json": SCHEMA}, f"json_schema {TEXT}"),
    ({"guided_regex": "a"}, "regex a"),
    ({"guided_choice": ["a"]}, 'choice ["a"]'),
    ({"guided_grammar": 'root ::= "a"'}, 'ebnf root ::= "a"'),
    ({"regex": "a"}, "regex a"),
    ({"ebnf": 'root ::= "a"'}, 'ebnf root ::= "a"'),
    ({"grammar": 'root ::= "a"'}, 'ebnf root ::= "a"'),
    ({"json_schema": SCHEMA}, f"json_schema {TEXT}"),
    ({"json_schema": TEXT} | formatted(type="text"), f"json_schema {TEXT}"),
]


@pytest.mark.parametrize(("fields", "grammar"), ASKED, ids=str)
def test_every_dialect_reaches_the_engine_as_its_grammar(
    server: Running, fields: dict[str, Any], grammar: str
) -> None:
    """The fake engine answers with the grammar that it was sent."""
    answer = server.post(server.chat(**fields))
    assert answer.status_code == 200, answer.text
    assert "x-falcon-ignored-params" not in answer.headers
    assert answer.json()["choices"][0]["message"]["content"] == grammar


def test_completions_take_the_same(server: Running) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 200} | structured(regex="a+")
    answer = server.post(body, path="/v1/completions")
    assert answer.json()["choices"][0]["text"] == "regex a+"


def test_every_choice_has_the_grammar(server: Running) -> None:
    answer = server.post(server.chat(n=3, **structured(regex="a+")))
    texts = [choice["message"]["content"] for choice in answer.json()["choices"]]
    assert texts == ["regex a+"] * 3


def test_openais_client_parses_into_a_class(server: Running) -> None:
    class Bird(BaseModel):
        legs: int

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        content = json.dumps({"say": '{"legs": 2}'})
        parsed = client.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": content}], response_format=Bird
        )
    assert parsed.choices[0].message.parsed == Bird(legs=2)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (formatted(), "response_format.type"),
    (formatted(type="grammar"), "response_format.type"),
    (formatted(type="json_schema"), "response_format.json_schema"),
    (formatted(type="text", json_schema=NAMED), "response_format.json_schema"),
    (formatted(type="json_schema", json_schema={}), "response_format.json_schema.name"),
    (
        formatted(type="json_schema", json_schema={"name": "a"}),
        "response_format.json_schema.schema",
    ),
    (
        formatted(type="json_schema", json_schema=NAMED | {"name": "a b"}),
        "response_format.json_schema.name",
    ),
    (
        formatted(type="json_schema", json_schema=NAMED | {"name": "a" * 65}),
        "response_format.json_schema.name",
    ),
    (
        formatted(type="json_schema", json_schema=NAMED | {"strict": "yes"}),
        "response_format.json_schema.strict",
    ),
    (
        formatted(type="json_schema", json_schema=NAMED | {"schema": [1]}),
        "response_format.json_schema.schema",
    ),
    (
        formatted(type="json_schema", json_schema=NAMED | {"schema": {"not": {}}}),
        "response_format.json_schema.schema",
    ),
    (formatted(type="json_object", schema=SCHEMA), "response_format.schema"),
    ({"response_format": "json_object"}, "response_format"),
    (structured(), "structured_outputs"),
    (structured(json_object=False), "structured_outputs"),
    (structured(regex="a", choice=["a"]), "structured_outputs"),
    (structured(regex=3), "structured_outputs.regex"),
    (structured(regex="(?=a)"), "structured_outputs.regex"),
    (structured(choice=[]), "structured_outputs.choice"),
    (structured(choice=["a", 1]), "structured_outputs.choice"),
    (structured(json="{"), "structured_outputs.json"),
    (structured(json=3), "structured_outputs.json"),
    (structured(structural_tag={}), "structured_outputs.structural_tag"),
    (structured(regex="a", whitespace_pattern=" *"), "structured_outputs.whitespace_pattern"),
    (
        structured(regex="a", disable_any_whitespace=True),
        "structured_outputs.disable_any_whitespace",
    ),
    (structured(regex="a" * 5000), "structured_outputs.regex"),
    (structured(grammar="a" * 70_000), "structured_outputs.grammar"),
    ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
    ({"grammar": "a"} | formatted(type="json_object"), "grammar"),
    ({"guided_choice": "a"}, "guided_choice"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ({"json_schema": 3}, "json_schema"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda each: str(each)[:60])
def test_what_is_not_honoured_is_a_400_that_names_it(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    before = server.received("Submit")
    answer = server.post(server.chat(**fields))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert server.received("Submit") == before


def test_what_a_grammar_counts_as_text_is_shown(server: Running) -> None:
    """The tags of thoughts and calls are special tokens to some models, and hidden otherwise."""
    tag = "<tool_call>"
    free = server.post(server.chat(json.dumps({"say": tag})))
    assert free.json()["choices"][0]["message"]["content"] == ""
    bound = server.post(server.chat(**structured(choice=[tag])))
    assert bound.json()["choices"][0]["message"]["content"] == f'choice ["{tag}"]'


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_the_engine_refuses_is_a_400_before_the_first_byte(
    server: Running, stream: bool
) -> None:
    orders = {"say": "", "error_after": 1, "step": 0, "refusal": "it does not compile: because"}
    answer = server.post(server.chat(orders, stream=stream, **structured(grammar="root ::= x")))
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": "Invalid 'structured_outputs.grammar': it does not compile: because.",
        "type": "invalid_request_error",
        "param": "structured_outputs.grammar",
        "code": None,
    }


def test_a_dead_end_behind_the_first_byte_is_an_error_in_the_stream(server: Running) -> None:
    orders = {"say": "a b c d e f g h", "error_after": 4, "step": 1, "refusal": "a dead end"}
    *_, error, done = server.events(server.chat(orders, **structured(regex="a")))
    assert error["error"]["param"] == "structured_outputs.regex"
    assert done == "[DONE]"
