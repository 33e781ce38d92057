"""Asks a server for responses, and holds them against OpenAI's schema in strict form."""

from __future__ import annotations

import json
from typing import Any, get_args

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from tests.server_harness import Running

# What OpenAI sends though its SDK has no field for it: `store`, `error` in an error event, `name`
# at the end of arguments. The rest is ours: reasoning, what a model card tells, and what is there
# only for who asks for `speculative` or `timings_per_token`.
_FIGURES = {"metrics", "timings"}
_THOUGHTS = {"reasoning", "reasoning_content"}
UNDECLARED = {
    "ChatCompletion": _FIGURES,
    "ChatCompletionChunk": _FIGURES | {"falcon"},
    "ChatCompletionMessage": _THOUGHTS,
    "ChoiceDelta": _THOUGHTS,
    "Completion": _FIGURES | {"falcon"},
    "Model": {"root", "max_model_len"},
    "Response": _FIGURES | {"store"},
    "ResponseErrorEvent": {"error"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
}
EVENTS: dict[str, type[BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event
    for event in get_args(get_args(ResponseStreamEvent)[0])
}


def whole(server: Running, body: dict[str, Any]) -> dict[str, Any]:
    """A response of status 200, checked."""
    answer = server.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    response: dict[str, Any] = answer.json()
    check(Response, response)
    return response


def streamed(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, each checked: name, number, schema."""
    answer = server.client.post("/v1/responses", json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        check(EVENTS[event["type"]], event)
        events.append(event)
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The events' types, a run of equal ones as one."""
    types = [event["type"] for event in events]
    return [kind for at, kind in enumerate(types) if at == 0 or types[at - 1] != kind]


def check(schema: type[BaseModel], body: dict[str, Any]) -> None:
    """Fails unless the body has the schema's fields with their exact types, and none beside."""
    for model in _models(schema.model_validate(body, strict=True)):
        known = UNDECLARED.get(type(model).__name__, set())
        unknown = set(model.model_extra or {}) - known
        assert not unknown, f"{type(model).__name__} has no {unknown}"


def _models(value: object) -> list[BaseModel]:
    """The model and all models within."""
    if isinstance(value, BaseModel):
        return [value, *(inner for _, field in value for inner in _models(field))]
    return [inner for item in value for inner in _models(item)] if isinstance(value, list) else []
