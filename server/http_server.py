"""uvicorn as we run it: our socket, our connections, our signals, our logs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from .addresses import Tls
from .connections import IDLE_SECONDS, GuardedProtocol

CLOSE_SECONDS = 2
TICKS_BETWEEN_LOOKS = 10


class HttpServer(uvicorn.Server):
    """Listens from the start, closes late connections, and leaves signals to others."""

    def __init__(self, app: ASGIApp, sock: socket.socket, tls: Tls | None = None) -> None:
        config = uvicorn.Config(
            app,
            **_tls_options(tls),
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        super().__init__(config)
        self._serving = asyncio.create_task(self.serve(sockets=[sock]))

    async def until_closed(self) -> None:
        """Raises what ended it, if it did not end in order."""
        await asyncio.shield(self._serving)

    async def close(self, waits: bool) -> None:
        """Take no more connections; wait 2 s for those that are at work, if at all."""
        self.force_exit = not waits
        self.should_exit = True
        await self.until_closed()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's handlers would raise the signal again after the drain."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % TICKS_BETWEEN_LOOKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in [*self.server_state.connections]:
                assert isinstance(connection, GuardedProtocol)
                connection.close_if_late(now)
        return await super().on_tick(counter)


def _tls_options(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {
        "ssl_certfile": tls.certfile,
        "ssl_keyfile": tls.keyfile,
        "ssl_ca_certs": tls.ca_certs,
        "ssl_cert_reqs": ssl.CERT_NONE if tls.ca_certs is None else ssl.CERT_REQUIRED,
    }
