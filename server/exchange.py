"""One HTTP request and its answer, as they travel between processes: plain values, no sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Scope

_SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request with its whole body; `key` is its conversation's, if it is one.

    `shunned` are replicas that it must not go to, as long as there are others.
    """

    scope: Mapping[str, Any]
    body: bytes
    key: str | None = None
    shunned: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Taken:
    """What a replica says before its answer: it has the request."""

    replica: str


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What it says in place of an answer that it cannot give, but another replica could."""


def portable(scope: Scope) -> dict[str, Any]:
    """What of a request's scope another process can use."""
    return {name: scope[name] for name in _SCOPE if name in scope}


async def answers(app: ASGIApp, exchange: Exchange) -> AsyncGenerator[Message, None]:
    """The ASGI messages of the application's answer; closing it is the client's leaving."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    is_gone = asyncio.Event()
    request: list[Message] = [
        {"type": "http.request", "body": exchange.body, "more_body": False},
    ]

    async def receive() -> Message:
        if request:
            return request.pop()
        await is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    async def work() -> None:
        try:
            await app(dict(exchange.scope), receive, send)
        finally:
            messages.put_nowait(None)

    working = asyncio.create_task(work())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await working
    finally:
        is_gone.set()
        await asyncio.gather(working, return_exceptions=True)
