"""Keeps an engine process running: starts it, notices its death or silence, starts the next.

    spawn ──> loading ── Ready ──> serving ── death or silence ──> pause ──> spawn
                                                  └── MAX_DEATHS in a row ──> given up

Knows no requests: the client's callbacks say what a death means for them. Imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Literal

from .config import EngineConfig
from .messages import FromEngine, Ready, Refused, Shutdown, ToEngine
from .process import EngineProcess, EngineStuck
from .wire import BadFrame

logger = logging.getLogger(__name__)

Status = Literal["starting", "ok", "restarting", "given up", "stopped"]

STOP_SECONDS = 3.0
FIRST_LOAD_SECONDS = 1800.0  # nobody knows yet how long the models take
MAX_DEATHS = 5  # in a row: no request ran to its end between them
BACKOFF_SECONDS = 0.5  # before the third process; doubled before each one after it
SOUND_LIFE = 5  # time-outs; who dies older than that has died of nothing that comes back


class EngineError(Exception):
    """The engine cannot serve a request, or none at all: the base of all others."""


class EngineRefused(EngineError):
    """The models cannot be served; the text is the engine's reason, for people."""


class EngineStarting(EngineError):
    """The models are still being loaded for the first time."""


class EngineDied(EngineError):
    """The engine is gone for good; the request's remaining tokens will not come."""


class EngineStopped(EngineDied):
    """It was ended on purpose."""


class Supervisor:
    """One task that runs engine processes one after another.

    A process that says nothing for `timeout` seconds is stuck, and is killed: it answers pings
    between steps, so no forward may take longer. `on_message` gets everything it says,
    `on_death` the reason of each death, and tells whether the death is explained: such a one does
    not count. `on_end` is called once, when no process will follow.
    """

    def __init__(self, config: EngineConfig, command: Sequence[str], timeout: float) -> None:
        self.status: Status = "starting"
        self.ready: Ready | None = None  # what the first process said of itself
        self.process: EngineProcess | None = None
        self.on_message: Callable[[FromEngine], None] = lambda message: None
        self.on_death: Callable[[str], bool] = lambda reason: False
        self.on_end: Callable[[EngineError], None] = lambda error: None
        self._config = config
        self._command = command
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._started: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._load_seconds = FIRST_LOAD_SECONDS
        self._changed_at = 0.0  # when the process was started, or became ready
        self._deaths = 0
        self._is_leaving = False

    async def start(self) -> Ready:
        """Start the first process. What fails the first time is not tried again.

        Raises `EngineRefused` with the engine's reason, or `EngineDied` if it ends without one.
        """
        self._task = asyncio.create_task(self._supervise(), name="engine supervisor")
        return await asyncio.shield(self._started)

    def send(self, message: ToEngine) -> None:
        """To the process, if it serves; nothing is kept for the next one."""
        if self.status == "ok" and self.process is not None:
            self.process.send(message)

    def forgive(self) -> None:
        """A request ran to its end: deaths are counted anew."""
        self._deaths = 0

    async def stop(self, patience: float) -> None:
        """Ask the process to leave, and kill it if it has not after so many seconds.

        One that does not serve is killed at once. May be called again, with less patience.
        """
        seconds = patience if self.status == "ok" or self._is_leaving else 0.0
        self._is_leaving = True
        self.send(Shutdown())
        self._end("stopped", EngineStopped("the engine was stopped"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.process is not None:
            await self.process.end(seconds)
            self.process = None

    async def _supervise(self) -> None:
        """Run one process after another, until there is no hope."""
        reason = "could not be supervised"
        try:
            while self._deaths < MAX_DEATHS:
                reason = await self._run_process()
                if self.status == "starting":
                    reason += " before it was ready; its own messages say why"
                    break
                await asyncio.sleep(self._pause_after(reason))
            else:
                logger.critical("the engine is given up: it died %d times in a row", MAX_DEATHS)
        except Exception:
            logger.exception("the engine is given up: supervising it failed")
        self._end("given up", EngineDied(f"the engine {reason}"))

    async def _run_process(self) -> str:
        """Serve with one process until it is gone; what became of it."""
        self._changed_at = _now()
        try:
            self.process = await EngineProcess.spawn(self._command)
        except OSError as error:
            return f"could not be started: {error}"
        self.process.send(self._config)
        complaint = await self._listen(self.process)
        if self.status == "ok":
            self.status = "restarting"
            if _now() - self._changed_at > SOUND_LIFE * self._timeout:
                self._deaths = 0
        end = await self.process.end(0.0 if complaint else STOP_SECONDS)
        self.process = None
        return f"{complaint} and {end}" if complaint else end

    async def _listen(self, process: EngineProcess) -> str | None:
        """Pass on what the process says until it ends; what is wrong when it is to be killed."""
        try:
            while True:
                patience = self._timeout if self.status == "ok" else self._load_seconds
                for message in await process.receive(patience):
                    self._take(message)
        except EOFError:
            return None
        except (EngineStuck, BadFrame) as error:
            return str(error)

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, Ready):
            self._engine_is_ready(message)
        elif isinstance(message, Refused):
            logger.error("the engine refuses: %s", message.reason)
            self._fail_start(EngineRefused(message.reason))
        self.on_message(message)

    def _engine_is_ready(self, ready: Ready) -> None:
        load_seconds = _now() - self._changed_at
        if self._started.done():
            logger.warning("the engine is back after %.1f s", load_seconds)
        else:
            self._load_seconds = self._timeout + 4 * load_seconds
            self.ready = ready
            self._started.set_result(ready)
        self._changed_at = _now()
        self.status = "ok"

    def _pause_after(self, reason: str) -> float:
        """Seconds between a death and the next start."""
        logger.error("the engine %s; the next one is started", reason)
        if self.on_death(reason):
            return 0.0
        self._deaths += 1
        return 0.0 if self._deaths == 1 else BACKOFF_SECONDS * 2 ** (self._deaths - 2)

    def _end(self, status: Status, error: EngineError) -> None:
        if self.status not in ("given up", "stopped"):
            self.status = status
            self._fail_start(error)
            self.on_end(error)

    def _fail_start(self, error: EngineError) -> None:
        if not self._started.done():
            self._started.set_exception(error)
            self._started.exception()  # retrieved: nobody may be waiting for it any more


def _now() -> float:
    return asyncio.get_running_loop().time()
