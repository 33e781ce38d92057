"""`GET /openapi.json`: an OpenAPI 3.1 document of the whole API."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter

from .answering import served_model
from .api_description import ANY, ERRORS, NEUTRAL_FIELDS, REQUESTS, ROUTES, Described
from .authentication import PROBES, is_open
from .reply_types import Error
from .settings import Access

Json = dict[str, Any]

_INFO = {
    "title": "Falcon",
    "description": "An OpenAI-compatible inference server with lossless speculative decoding.",
}
_BEARER = {"type": "http", "scheme": "bearer", "description": "An API key of this server."}
_REPLY_HEADERS = {
    "x-request-id": {
        "description": "The request's own, if it is a plain word, or a new one.",
        "schema": {"type": "string"},
    }
}
_IGNORED = "The request's parameters that this server does not know, if there are any."
_RETRY = {
    "retry-after": {"description": "In seconds.", "schema": {"type": "string", "pattern": "^\\d+$"}}
}

router = APIRouter()


@router.get("/openapi.json")
async def describe(http: Request) -> Response:
    access: Access = http.app.state.access
    names = served_model(http).names
    text = await asyncio.to_thread(_text, names, access.keys.are_required, access.open_metrics)
    return Response(text, media_type="application/json")


@cache
def _text(names: tuple[str, ...], needs_key: bool, open_metrics: bool) -> bytes:
    return msgspec.json.encode(document(names, needs_key, open_metrics))


def document(names: tuple[str, ...], needs_key: bool = False, open_metrics: bool = False) -> Json:
    """The document of a server whose model has these names, and that asks for keys or does not."""
    schemas = _Schemas(names)
    paths: dict[str, Json] = {}
    for route in ROUTES:
        closed = needs_key and not is_open(route.path, open_metrics)
        paths.setdefault(route.path, {})[route.method] = schemas.operation(route, closed)
    components: Json = {"schemas": schemas.components}
    if needs_key:
        components["securitySchemes"] = {"key": _BEARER}
    info = _INFO | {"version": version("falcon-server")}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


class _Schemas:
    """The JSON Schemas of all types that the routes name."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names: Json = {"type": "string", "enum": [*names]}
        kinds = [Error, *(kind for route in ROUTES for kind in _kinds(route))]
        found, shared = TypeAdapter.json_schemas(
            [(at, "validation", TypeAdapter(kind)) for at, kind in enumerate(kinds)],
            ref_template="#/components/schemas/{model}",
        )
        self.components: Json = shared["$defs"]
        self._schemas = [(kind, found[at, "validation"]) for at, kind in enumerate(kinds)]
        for name, fields in NEUTRAL_FIELDS.items():
            properties = self.components[name]["properties"]
            for field, values in fields.items():
                properties.setdefault(field, {"enum": [*values, None]})
        for kind in REQUESTS:
            self._name_models(self.components[kind.__name__])

    def _name_models(self, schema: Json) -> None:
        """The model asked for is one of those served; where it may be left out, or null."""
        is_needed = "model" in schema.get("required", [])
        kinds = [self._names, *([] if is_needed else [{"type": "null"}])]
        schema["properties"]["model"] = {"anyOf": kinds}

    def operation(self, route: Described, needs_key: bool) -> Json:
        found: Json = {
            "operationId": f"{route.method}{route.path}",
            "summary": route.summary,
            "responses": {"200": self._success(route)} | self._failures(route, needs_key),
        }
        if "{name}" in route.path:
            place = {"name": "name", "in": "path", "required": True}
            found["parameters"] = [place | {"schema": self._names}]
        if route.request is not None:
            content = {"application/json": {"schema": self._of(route.request)}}
            found["requestBody"] = {"required": True, "content": content}
        if needs_key:
            found["security"] = [{"key": []}]
        return found

    def _of(self, kind: Any) -> Json:
        return next(schema for own, schema in self._schemas if own == kind)

    def _success(self, route: Described) -> Json:
        content = {route.media_type: {"schema": self._of(route.reply)}}
        headers: Json = dict(_REPLY_HEADERS)
        if route.event is not None:
            content["text/event-stream"] = {"schema": self._event(route)}
        if route.request is not None:
            schema = {"type": "string"}
            headers["x-falcon-ignored-params"] = {"description": _IGNORED, "schema": schema}
        return {"description": "Done.", "headers": headers, "content": content}

    def _event(self, route: Described) -> Json:
        """One event of a stream, as it is read: its name, where it has one, and its data."""
        data = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": self._of(route.event),
        }
        if route.path == "/v1/responses":
            properties: Json = {"event": {"type": "string"}, "data": data}
        else:
            properties = {"data": {"anyOf": [{"const": "[DONE]"}, data]}}
        return {"type": "object", "required": list(properties), "properties": properties}

    def _failures(self, route: Described, needs_key: bool) -> Json:
        statuses = {*ANY, *route.errors, *([401] if needs_key else [])}
        return {str(status): self._failure(route, status) for status in sorted(statuses)}

    def _failure(self, route: Described, status: int) -> Json:
        is_probe = route.path in PROBES and status == 503
        schema = self._of(route.reply if is_probe else Error)
        found: Json = {
            "description": ERRORS[status],
            "content": {"application/json": {"schema": schema}},
        }
        return found | ({"headers": _RETRY} if status in (429, 503) else {})


def _kinds(route: Described) -> list[Any]:
    return [kind for kind in (route.reply, route.request, route.event) if kind is not None]
