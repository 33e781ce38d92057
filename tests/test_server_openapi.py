"""`/openapi.json` is a valid document of all routes, and schemathesis finds no answer beside it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from server.api_keys import ApiKeys
from server.app import create_app
from server.openapi import document
from server.settings import Access, Limits
from tests import schema_fuzzing
from tests.conformance_cases import WHOLE
from tests.published_schema import check
from tests.server_harness import Running, build_model_folder, paths_of, running_server

KEY = "sk-falcon-1234"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = build_model_folder(tmp_path_factory.mktemp("model"))
    access = Access(ApiKeys([KEY]), open_metrics=True)
    with running_server(folder, access=access) as running:
        yield running


def described(server: Running) -> dict[str, Any]:
    answer = server.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def test_the_document_needs_the_key_and_names_what_does(server: Running) -> None:
    assert server.get("/openapi.json").status_code == 401
    found = described(server)
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in found["paths"].items():
        is_closed = server.get(path.replace("{name}", "tiny")).status_code == 401
        for operation in methods.values():
            assert ("security" in operation) == is_closed, path
            assert ("401" in operation["responses"]) == is_closed, path


def test_a_server_without_keys_asks_for_none() -> None:
    found = document(("tiny",))
    assert "securitySchemes" not in found["components"]
    assert not any("security" in own for path in found["paths"].values() for own in path.values())


def test_the_models_are_those_served(server: Running) -> None:
    found = described(server)
    for name in ("ChatCompletionRequest", "CompletionRequest", "ResponseRequest"):
        (model,) = found["components"]["schemas"][name]["properties"]["model"]["anyOf"]
        assert model["enum"] == ["tiny"]


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    found = document(("tiny",), needs_key=True)
    schemas = found["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    names = {reference.rpartition("/")[2] for reference in references(found)}
    assert names <= set(schemas)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_route_but_the_page_is_described() -> None:
    nothing = SimpleNamespace(metrics=None)
    app = create_app(nothing, None, Limits(), Access(), None)  # type: ignore[arg-type]  # not run
    known = {path.replace(":path", "") for path in paths_of(app.routes)}
    assert known - set(document(("tiny",))["paths"]) == {"/", "/static/{name}", "/openapi.json"}


def test_routes_take_the_methods_that_are_described(server: Running) -> None:
    for path, methods in described(server)["paths"].items():
        answer = server.client.request(
            "PATCH",
            path.replace("{name}", "tiny"),
            headers={"authorization": f"Bearer {KEY}"},
        )
        assert answer.status_code == 405
        allowed = {method.strip() for method in answer.headers["allow"].split(",")} - {"HEAD"}
        assert allowed == {method.upper() for method in methods}, path


@pytest.mark.parametrize("name", WHOLE)
def test_requests_that_are_answered_are_described(name: str) -> None:
    path, body = WHOLE[name]
    content = document(("tiny",))["paths"][path]["post"]["requestBody"]["content"]
    check(content["application/json"]["schema"], body)


def test_schemathesis_finds_nothing(server: Running) -> None:
    show_key = ("-H", f"Authorization: Bearer {KEY}")
    done = schema_fuzzing.run(server.url, "--phases", "coverage", *show_key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
    assert server.received("Start") == 1
    assert not schema_fuzzing.restarts(server.url)
