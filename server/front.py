"""The door to several replicas: reads a request, picks who answers it, and passes the answer on.

A request whose replica is lost before the first byte of its answer is given to another one. Knows
no Ray: `replicas.py` says how replicas are reached.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .affinity import conversation_key
from .app import guard
from .authentication import METRICS, PROBES
from .errors import ApiError, no_replica, replica_lost
from .events import DONE, event, named_event
from .exchange import Exchange, GivenBack, Taken, portable
from .exposition import merged
from .request_body import read_body
from .settings import Access, Limits

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # a request that takes its replica down with it does not do so with all of them
PROBE_SECONDS = 2.0
REPLICA_HEADER = "x-falcon-replica"
_NUMBER = re.compile(rb'"sequence_number":([0-9]+)')

Item = Taken | GivenBack | Message


class ReplicaLost(Exception):
    """The replica that had a request is gone, and with it the rest of the answer."""


class Replicas(Protocol):
    """All that there are at the moment."""

    def ask(self, exchange: Exchange) -> AsyncGenerator[Item, None]:
        """`Taken`, once a replica has the request, then its answer. Raises `ReplicaLost`.

        Waits for a replica; closing it ends the work.
        """

    async def expositions(self) -> Mapping[str, bytes]:
        """The metrics of each by its name."""


def create_front(replicas: Replicas, access: Access, limits: Limits) -> ASGIApp:
    """The application that clients see."""
    app = Starlette()
    app.router.default = Front(replicas, limits.queue_timeout)
    guard(app, access)
    return Entrance(app)


class Entrance:
    """What Ray's proxy asks. It adds the request's id to each answer, so ours is taken off."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        match scope["type"]:
            case "http":
                await self._app(scope, receive, send_without_id)
            case "lifespan":
                await self._app.router.lifespan(scope, receive, send)
            case "websocket":
                await send({"type": "websocket.close"})


class Front:
    """Answers each request with what a replica answers, waiting `patience` seconds for one."""

    def __init__(self, replicas: Replicas, patience: float) -> None:
        self._replicas = replicas
        self._patience = patience or None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send, scope["path"])
        try:
            if scope["path"] == METRICS and scope["method"] in ("GET", "HEAD"):
                text = merged(await self._replicas.expositions())
                await Response(text, media_type=CONTENT_TYPE_LATEST)(scope, receive, send)
                return
            body = await read_body(Request(scope, receive))
            await self._relay(Exchange(portable(scope), body, conversation_key(body)), answer)
        except ApiError as error:
            await error.response()(scope, receive, send)

    async def _relay(self, exchange: Exchange, answer: _Answer) -> None:
        """Pass on the answer of the first replica that gives one. Raises `ApiError` if none did."""
        for _ in range(ATTEMPTS):
            answer.replica = ""
            try:
                async with aclosing(self._replicas.ask(exchange)) as items:
                    answer.replica = await self._name(items, exchange.scope["path"])
                    async for item in items:
                        if isinstance(item, GivenBack):
                            raise ReplicaLost
                        assert not isinstance(item, Taken)
                        await answer.pass_on(item)
                    return
            except ReplicaLost:
                if answer.is_whole:
                    return
                if answer.has_begun:
                    logger.error("replica %s is lost, and a begun answer with it", answer.replica)
                    await answer.break_off()
                    return
            logger.warning("replica %s is lost, a request goes elsewhere", answer.replica)
            exchange = replace(exchange, shunned=exchange.shunned | {answer.replica})
        raise no_replica()

    async def _name(self, items: AsyncGenerator[Item, None], path: str) -> str:
        """Of the replica that has the request, once there is one. Raises `ApiError`."""
        try:
            async with asyncio.timeout(PROBE_SECONDS if path in PROBES else self._patience):
                taken = await anext(items)
        except TimeoutError:
            raise no_replica() from None
        assert isinstance(taken, Taken)
        return taken.replica


class _Answer:
    """One answer on its way to the client, whose head waits for the first byte behind it."""

    def __init__(self, send: Send, path: str) -> None:
        self.has_begun = False
        self.is_whole = False
        self.replica = ""
        self._send = send
        self._has_done = path != "/v1/responses"  # their streams have no [DONE], and are numbered
        self._head: Message = {}
        self._number = 0

    async def pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[REPLICA_HEADER] = self.replica
            self._head = message
            return
        if not self.has_begun:
            self.has_begun = True
            await self._send(self._head)
        if not self._has_done and (numbers := _NUMBER.findall(message.get("body", b""))):
            self._number = int(numbers[-1]) + 1
        await self._send(message)
        self.is_whole = not message.get("more_body")

    async def break_off(self) -> None:
        """End a stream with an error. What is none stays without its end, which clients notice."""
        kind = Headers(raw=self._head["headers"]).get("content-type", "")
        if kind.startswith("text/event-stream"):
            await self._send({"type": "http.response.body", "body": self._last_words()})

    def _last_words(self) -> bytes:
        body = replica_lost().body
        if self._has_done:
            return event(body) + DONE
        detail = body["error"]
        own = {name: detail[name] for name in ("code", "message", "param")}
        number = {"sequence_number": self._number}
        return named_event({"type": "error", **own, "error": detail} | number)
