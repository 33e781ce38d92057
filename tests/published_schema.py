"""What `/openapi.json` says of a body, in its strictest reading: no key beside those listed."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from server.openapi import document

Json = dict[str, Any]


@cache
def closed_document() -> Json:
    """The document, with every object of a reply closed to keys that it does not list."""
    found = copy.deepcopy(document(("tiny",)))
    for schema in found["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return found


def check_answer(method: str, path: str, answer: httpx.Response) -> None:
    """Fails unless the description has the answer's status, media type, and all of its body."""
    route = next(
        route
        for template, route in closed_document()["paths"].items()
        if template == path or (template.endswith("/{name}") and path.startswith(template[:-6]))
    )
    described = route[method.lower()]["responses"][str(answer.status_code)]["content"]
    media_type = answer.headers["content-type"].partition(";")[0]
    assert media_type in described, media_type
    schema = described[media_type]["schema"]
    if media_type == "text/event-stream":
        for event in events_of(answer.text):
            _check_event(schema, event)
    elif media_type == "application/json":
        check(schema, answer.json())


def events_of(stream: str) -> list[dict[str, str]]:
    """Events of a stream as their fields; comments are left out."""
    blocks = stream.removesuffix("\n\n").split("\n\n")
    found = [
        dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        for block in blocks
    ]
    return [event for event in found if event]


def check(schema: Json, body: object) -> None:
    """Fails with all complaints about a body."""
    whole = schema | {"components": closed_document()["components"]}
    complaints = [
        f"{error.json_path}: {error.message}"
        for error in Draft202012Validator(whole).iter_errors(body)
    ]
    assert not complaints, complaints[:5]


def _check_event(schema: Json, event: dict[str, str]) -> None:
    assert set(event) == set(schema["properties"]), event
    data = schema["properties"]["data"]
    if "anyOf" in data:
        done, data = data["anyOf"]
        if event["data"] == done["const"]:
            return
    check(data["contentSchema"], json.loads(event["data"]))
