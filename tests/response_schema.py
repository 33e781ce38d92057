"""OpenAI's schema of responses and their events in strict form, as its SDK has it."""

from __future__ import annotations

import json
from typing import Any, get_args

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

# What OpenAI sends though its SDK has no field for it: `store` always, `error` in an error event.
UNDECLARED = {"Response": {"store"}, "ResponseErrorEvent": {"error"}}
EVENTS: dict[str, type[BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event
    for event in get_args(get_args(ResponseStreamEvent)[0])
}


def check_event(event: dict[str, Any]) -> None:
    check(EVENTS[event["type"]], event)


def check_response(response: dict[str, Any]) -> None:
    check(Response, response)


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


def read_events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each checked: name, number, schema; pings left out."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        check_event(event)
        events.append(event)
    return events
