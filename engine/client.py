"""The HTTP process's side of the engine process; imports no torch.

The worker is spawned with one end of a socket pair and dies with us: when this process ends, for
whatever reason, its socket reads end-of-file. It is detached from the terminal, so that Ctrl-C
reaches the server alone, which then shuts the worker down in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Sequence

from .config import EngineConfig
from .messages import Abort, FromEngine, Ready, Refused, RequestOutput, Shutdown, StepReport, Submit
from .wire import BadFrame, encode_frame, from_engine_decoder

logger = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "engine.worker")
# Weights on huge pages: fewer address translations in every product. For glibc, others ignore it.
WORKER_ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
STOP_SECONDS = 3.0
_READ_BYTES = 256 * 1024


class EngineError(Exception):
    """The engine cannot serve: the base of the two below."""


class EngineRefused(EngineError):
    """The models cannot be served; the text is the engine's reason, for people."""


class EngineDied(EngineError):
    """The engine process is gone; the request's remaining tokens will not come."""


class EngineClient:
    """Starts the engine process, multiplexes requests over its socket, stops it.

    `command` is completed by the number of the worker's file descriptor. Every function in
    `observers` is called with every `StepReport`, before its outputs are handed out.
    """

    def __init__(self, config: EngineConfig, command: Sequence[str] = WORKER_COMMAND) -> None:
        self.observers: list[Callable[[StepReport], None]] = []
        self._config = config
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._streams: dict[str, asyncio.Queue[RequestOutput | None]] = {}
        self._is_ready = False
        self._death: str | None = None

    @property
    def is_alive(self) -> bool:
        """True from `Ready` until the engine process ends or is stopped."""
        return self._is_ready and self._death is None

    async def start(self) -> Ready:
        """Spawn the worker and wait until its models are warm.

        Raises `EngineRefused` with the worker's reason, or `EngineDied` if it ends without one.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=WORKER_ENVIRONMENT | dict(os.environ),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._reading = asyncio.create_task(self._read(reader), name="engine reader")
        self._send(self._config)
        return await asyncio.shield(self._ready)

    async def generate(self, submit: Submit) -> AsyncGenerator[RequestOutput, None]:
        """Run a request and yield what each step gave it, ending with its finish reason.

        Closing or cancelling the iterator before the finish aborts the request in the engine.
        Raises `EngineDied` when the engine goes away first.
        """
        self._raise_if_dead()
        queue: asyncio.Queue[RequestOutput | None] = asyncio.Queue()
        self._streams[submit.request_id] = queue
        is_finished = False
        try:
            self._send(submit)
            while not is_finished:
                output = await queue.get()
                if output is None:
                    self._raise_if_dead()
                    return
                is_finished = output.finish_reason is not None
                yield output
        finally:
            del self._streams[submit.request_id]
            if not is_finished and self.is_alive:
                self._send(Abort(submit.request_id))

    async def stop(self) -> None:
        """End all requests, ask the worker to leave, and kill it if it has not after 3 seconds."""
        if self.is_alive:
            self._send(Shutdown())
        self._die("the engine was stopped")
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            await _wait_or_kill(self._process)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()

    def _send(self, message: EngineConfig | Submit | Abort | Shutdown) -> None:
        assert self._writer is not None, "start() comes first"
        self._writer.write(encode_frame(message))

    def _raise_if_dead(self) -> None:
        if not self.is_alive:
            raise EngineDied(self._death or "the engine has not been started")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand out what the engine sends until its socket ends."""
        frames = from_engine_decoder()
        reason = "the engine process ended"
        try:
            while data := await reader.read(_READ_BYTES):
                for message in frames.feed(data):
                    self._receive(message)
        except ConnectionError:
            reason = "the engine process closed its connection"
        except BadFrame as error:
            reason = f"the engine process sent a broken frame: {error}"
        except Exception:
            logger.exception("a report of the engine could not be handed out")
            reason = "reading from the engine process failed"
        if self._death is None:
            logger.error("%s", reason)
        self._die(reason)

    def _receive(self, message: FromEngine) -> None:
        match message:
            case StepReport():
                self._hand_out(message)
            case Ready():
                self._is_ready = True
                self._ready.set_result(message)
            case Refused():
                self._ready.set_exception(EngineRefused(message.reason))

    def _hand_out(self, report: StepReport) -> None:
        for observer in self.observers:
            observer(report)
        for output in report.outputs:
            # Outputs of a request that was aborted a moment ago have no queue any more.
            if (queue := self._streams.get(output.request_id)) is not None:
                queue.put_nowait(output)

    def _die(self, reason: str) -> None:
        """From now on nothing is alive; the first reason stays."""
        self._death = self._death or reason
        if not self._ready.done():
            died = EngineDied(f"{self._death} before it was ready; its own messages say why")
            self._ready.set_exception(died)
            self._ready.exception()  # retrieved: nobody may be waiting for it any more
        for queue in self._streams.values():
            queue.put_nowait(None)


async def _wait_or_kill(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        logger.warning("the engine process did not leave in %.0f s; killing it", STOP_SECONDS)
        process.kill()
        await process.wait()
