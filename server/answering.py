"""How every generating endpoint answers: an object or an event stream, made of the same deltas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from engine.messages import Submit

from .api_keys import bearer_key, key_digest
from .deadlines import HEADER, Deadlines, in_time
from .deltas import Delta, deltas
from .disconnect import ClientGone, while_connected
from .errors import CLIENT_CLOSED_REQUEST, from_validation
from .parameters import Parameters
from .pings import pinged
from .priming import Primed
from .reading import PLAIN, Reading
from .request_log import RequestLog, arrival_of
from .served import ServedModel
from .settings import Limits
from .unsupported import Extra, check_extras

PING_SECONDS = 15

Body = TypeVar("Body", bound=BaseModel)


class Replies(Protocol):
    """What an endpoint makes of the deltas."""

    async def whole(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]: ...

    def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]: ...


async def answer(
    http: Request,
    request: Parameters,
    submits: Sequence[Submit],
    replies: Replies,
    reading: Reading = PLAIN,
    ignored: Sequence[Extra] = (),
) -> Response:
    """Run the submits and reply as the request asks. Raises `ApiError` before the first byte.

    `ignored` are fields beside the request's own that mean nothing to the served model.
    """
    served, limits = served_model(http), _limits(http)
    headers = ignored_headers(http, [*request.extras(), *ignored])
    header = http.headers.get(HEADER)
    deadlines = Deadlines.starting_now(limits.queue_timeout, limits.request_timeout, header)
    clocks = served.metrics.clocks(submits, request.num_choices, arrival_of(http))
    found = in_time(deltas(submits, request, reading, served, clocks), deadlines)
    if served.tracing is not None:
        found = served.tracing.traced(http, request.model, submits, clocks, found)
    stream = Primed(_request_log(http).watching(http, submits, found))
    try:
        if not request.stream:
            reply = await while_connected(http, replies.whole(stream))
            return json_response(reply, headers)
        await while_connected(http, stream.prime(PING_SECONDS))
    except ClientGone:
        await stream.aclose()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except BaseException:
        await stream.aclose()
        raise
    return _EventStream(stream, replies.events(stream), headers)


class _EventStream(EventSourceResponse):
    """Server-sent events that close what they are made of, also when they are never read."""

    def __init__(
        self, stream: Primed[Delta], chunks: AsyncGenerator[bytes, None], headers: dict[str, str]
    ) -> None:
        events = pinged(chunks, PING_SECONDS)
        super().__init__(events, headers=headers, ping=0)
        self._events = events
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            await self._stream.aclose()


def validated(schema: type[Body], body: dict[str, object], prefix: str = "") -> Body:
    """The body as its schema says. Raises `ApiError` 400; `prefix` leads to a body within one."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise from_validation(error, prefix) from None


def json_response(body: object, headers: dict[str, str]) -> Response:
    """The quickest way: a scored prompt has megabytes, and other streams wait meanwhile."""
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")


def ignored_headers(http: Request, extras: Iterable[Extra]) -> dict[str, str]:
    """Headers that name what is ignored. Raises `ApiError` 400 where it must not be."""
    return check_extras(extras, _limits(http).strict_params)


def served_model(http: Request) -> ServedModel:
    served: ServedModel = http.app.state.served
    return served


def key_of(http: Request) -> str:
    """Whose request it is, for a fair share of the engine: a digest, for the key is a secret."""
    key = bearer_key(http.headers.get("authorization", ""))
    return key_digest(key) if key else ""


def _request_log(http: Request) -> RequestLog:
    log: RequestLog = http.app.state.request_log
    return log


def _limits(http: Request) -> Limits:
    limits: Limits = http.app.state.limits
    return limits
