"""One life of the engine process, seen from the HTTP process; imports no torch.

The process gets one end of a socket pair and dies with us: when the HTTP process ends, for whatever
reason, its socket reads end-of-file. It is detached from the terminal, so that Ctrl-C reaches the
server alone, which then shuts the engine down in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence

from .messages import FromEngine, Ping, ToEngine
from .wire import encode_frame, from_engine_decoder

WORKER_COMMAND = (sys.executable, "-m", "engine.worker")
# Weights on huge pages: fewer address translations in every product. For glibc, others ignore it.
WORKER_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
TICKS = 10  # looks at the clock while waiting for a word
_READ_BYTES = 256 * 1024


class EngineStuck(Exception):
    """The process is there, but says nothing."""


class EngineProcess:
    """Started by `spawn`, and to be `end`ed by whoever started it."""

    def __init__(
        self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._frames = from_engine_decoder()

    @classmethod
    async def spawn(cls, command: Sequence[str]) -> EngineProcess:
        """Run `command`, completed by the number of its file descriptor."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(theirs.fileno()),
                    stdin=DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=WORKER_ENVIRONMENT | dict(os.environ),
                )
            except BaseException:
                writer.close()
                raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Write one message; nothing happens when the process is gone."""
        if not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    async def receive(self, patience: float) -> list[FromEngine]:
        """The messages that come next, at least one.

        A quiet engine is pinged. Its silence is counted in ticks of our own loop: when this very
        process was paused, that is one tick, and the next reads what the engine said meanwhile.
        Raises `EOFError` when the process has closed its end, `EngineStuck` when it said nothing
        for `patience` seconds, and `BadFrame`.
        """
        for _ in range(TICKS):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience / TICKS):
                    return await self._read()
            self.send(Ping())
        raise EngineStuck(f"said nothing for {patience:g} s")

    async def _read(self) -> list[FromEngine]:
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(_READ_BYTES):
                if messages := self._frames.feed(data):
                    return messages
        raise EOFError

    async def end(self, seconds: float) -> str:
        """Close the socket, kill the process if it stays for `seconds`; how it ended, in words.

        May be called again, also when an earlier call was cancelled.
        """
        self._writer.close()
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        status = await self._process.wait()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
