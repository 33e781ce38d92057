"""Structured output in responses: `text.format` means what `response_format` means in chats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.response_schema import streamed, whole
from tests.server_harness import Running, build_model_folder, running_server

SCHEMA = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}
FORMAT = {"type": "json_schema", "name": "bird", "schema": SCHEMA}


class Bird(BaseModel):
    legs: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = build_model_folder(tmp_path_factory.mktemp("model"))
    with running_server(folder, model_len=1024) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(form: object, text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": text, "text": {"format": form}} | fields


@pytest.mark.parametrize(
    ("form", "grammar", "echo"),
    [
        ({"type": "text"}, "echo:hi", {"type": "text"}),
        ({"type": "json_object"}, "json_object ", {"type": "json_object"}),
        (
            FORMAT,
            f"json_schema {json.dumps(SCHEMA)}",
            FORMAT | {"strict": False},
        ),
        (
            FORMAT | {"description": "a bird", "strict": True},
            f"json_schema {json.dumps(SCHEMA)}",
            FORMAT | {"description": "a bird", "strict": True},
        ),
    ],
)
def test_a_format_reaches_the_engine_as_its_grammar(
    server: Running, form: dict[str, Any], grammar: str, echo: dict[str, Any]
) -> None:
    """The fake engine answers with the grammar that it was sent."""
    response = whole(server, ask(form))
    assert response["output"][0]["content"][0]["text"] == grammar
    assert response["text"] == {"format": echo, "verbosity": "medium"}


def test_openais_client_parses_into_a_class(client: openai.OpenAI) -> None:
    orders = json.dumps({"say": '{"legs": 2}'})
    parsed = client.responses.parse(model="tiny", input=orders, text_format=Bird)
    assert parsed.output_parsed == Bird(legs=2)
    with client.responses.stream(model="tiny", input=orders, text_format=Bird) as stream:
        assert stream.get_final_response().output_parsed == Bird(legs=2)


def test_other_grammars_are_chats_extensions(server: Running) -> None:
    response = whole(server, ask(None, structured_outputs={"regex": "a+"}))
    assert response["output"][0]["content"][0]["text"] == "regex a+"


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({}, "text.format.type"),
        ({"type": "grammar"}, "text.format.type"),
        ({"type": "json_schema"}, "text.format.name"),
        ({"type": "json_schema", "name": "a"}, "text.format.schema"),
        (FORMAT | {"name": "a b"}, "text.format.name"),
        (FORMAT | {"strict": "yes"}, "text.format.strict"),
        (FORMAT | {"schema": [1]}, "text.format.schema"),
        (FORMAT | {"schema": {"not": {}}}, "text.format.schema"),
        ({"type": "json_object", "schema": SCHEMA}, "text.format.schema"),
    ],
)
def test_a_bad_format_is_named_where_it_stands(
    server: Running, form: dict[str, Any], param: str
) -> None:
    answer = server.client.post("/v1/responses", json=ask(form))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert f"'{param}'" in error["message"]


def test_two_grammars_are_one_too_many(server: Running) -> None:
    answer = server.client.post("/v1/responses", json=ask(FORMAT, regex="a"))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "regex"
    assert "'text.format.schema'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_format_that_the_engine_refuses_is_a_400(server: Running, stream: bool) -> None:
    orders = {"say": "", "error_after": 1, "step": 0, "refusal": "it does not compile: because"}
    answer = server.client.post(
        "/v1/responses", json=ask(FORMAT, json.dumps(orders), stream=stream)
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "text.format.schema"


def test_a_dead_end_behind_the_first_byte_is_an_error_in_the_stream(server: Running) -> None:
    orders = {"say": "a b c d e f g h", "error_after": 4, "step": 1, "refusal": "a dead end"}
    *_, error, failed = streamed(server, ask(FORMAT, json.dumps(orders)))
    assert (error["type"], error["param"]) == ("error", "text.format.schema")
    assert failed["response"]["status"] == "failed"
