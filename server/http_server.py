"""uvicorn as we run it: our socket, our connections, our signals, our logs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from .connections import IDLE_SECONDS, GuardedProtocol
from .settings import Settings, SettingsError

CLOSE_SECONDS = 2
TICKS_BETWEEN_LOOKS = 10


class HttpServer(uvicorn.Server):
    """Listens from the start, closes late connections, and leaves signals to others."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        config = uvicorn.Config(
            app,
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


def listening_socket(settings: Settings) -> socket.socket:
    """Bound before the models load, so that a taken port is known at once. Not yet listening.

    Raises `SettingsError`.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)  # asyncio asks it whether to send at once
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): "
            "stop what uses it, or choose another with --host and --port"
        ) from error
    return sock


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
