"""HTTP/1.1 connections that are closed by our clock, and refuse malformed requests in our words.

uvicorn limits how long a connection may be idle, and nothing else. Here a head, a body and an
answer each have their time as well, and a body its number of chunks. Every connection is looked at
once a second: a timer for each would cost more than it tells.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .errors import malformed_request
from .middleware import MAX_HEADER_BYTES
from .request_body import READ_SECONDS

MAX_CONNECTIONS = 1024
MAX_CHUNKS = 4096
IDLE_SECONDS = 5
HEAD_SECONDS = 10.0
BODY_SECONDS = READ_SECONDS + 5  # who reads the body answers 408 before that
SEND_SECONDS = 30.0
SEND_BYTES = 16 * 1024  # the least that a client takes in that time

Phase = tuple[object, ...]


class GuardedProtocol(H11Protocol):
    """One connection. `close_if_late` is to be called about once a second."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _ChunkCounter(h11.SERVER, MAX_HEADER_BYTES)
        self._phase: Phase = ()
        self._since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()

    def close_if_late(self, now: float) -> None:
        """Close the connection when it has been in one phase for longer than that may take."""
        phase, seconds = self._phase_and_limit()
        if phase != self._phase:
            self._phase, self._since = phase, now
        elif now - self._since > seconds:
            self.transport.abort()

    def _phase_and_limit(self) -> tuple[Phase, float]:
        if self.transport.is_closing() or self.flow.write_paused:
            unsent = self.transport.get_write_buffer_size()
            return ("sending", unsent // SEND_BYTES), SEND_SECONDS
        if self.conn.their_state is h11.IDLE:
            return ("head", id(self.cycle)), HEAD_SECONDS
        if self.conn.their_state is h11.SEND_BODY:
            return ("body", id(self.cycle)), BODY_SECONDS
        return ("working",), math.inf

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless an answer is on its way already, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = malformed_request().response()
            head = h11.Response(status_code=answer.status_code, headers=answer.raw_headers)
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False


class _ChunkCounter(h11.Connection):
    """Each chunk costs as much as a page of body does."""

    _chunks = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = 0
        elif isinstance(event, h11.Data) and event.chunk_start:
            self._chunks += 1
            if self._chunks > MAX_CHUNKS:
                raise h11.RemoteProtocolError("too many chunks")
        return event
