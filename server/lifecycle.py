"""The parts of the server's life, and what each of them refuses.

    loading ── engine ready ──> serving ── signal ──> leaving ── delay over ──> draining ──> gone

While loading, everything that needs the model is a 503. Leaving, the server says so and serves on,
until balancers have looked elsewhere. Draining, it takes no new work and ends what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.client import EngineClient

from .authentication import PROBES
from .errors import server_draining


class Life:
    """One server's, with its engine's."""

    def __init__(self, engine: EngineClient) -> None:
        self.is_leaving = False
        self.is_draining = False
        self._engine = engine
        self._working = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_hopeless(self) -> bool:
        """Whether only a new server process can help."""
        return self._engine.status == "given up"

    @property
    def state(self) -> str:
        """In a word or two; "ready" while requests are welcome and make progress."""
        if self.is_leaving:
            return "draining" if self.is_draining else "leaving"
        match self._engine.status:
            case "ok":
                return "ready"
            case "starting":
                return "loading"
            case status:
                return f"engine {status}"

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around every piece of work that draining waits for."""
        self._working += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._working -= 1
            if not self._working:
                self._idle.set()

    async def until_idle(self) -> None:
        await self._idle.wait()


class Gate:
    """Counts the work, which is every POST, and takes no more while the server drains. Pure ASGI.

    From the signal on each answer closes its connection: the next request goes elsewhere.
    """

    def __init__(self, app: ASGIApp, life: Life) -> None:
        self.app = app
        self._life = life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._life.is_leaving:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        if scope["method"] != "POST" or scope["path"] in PROBES:
            await self.app(scope, receive, send_and_close)
        elif self._life.is_draining:
            await server_draining().response()(scope, receive, send_and_close)
        else:
            with self._life.working():
                await self.app(scope, receive, send_and_close)
