"""The engine as the HTTP process sees it: requests in, tokens out, whatever happens in between.

Unfinished requests are kept in `pending.py`. When the engine process dies, `supervisor.py` starts
another, and they are sent again, behind the tokens they were given. Imports no torch.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Literal, TypeVar

from .config import EngineConfig
from .messages import Abort, Forgotten, FromEngine, Ready, RequestOutput, StepReport, Submit
from .pending import Pending
from .process import WORKER_COMMAND
from .supervisor import (
    STOP_SECONDS,
    EngineDied,
    EngineError,
    EngineRefused,
    EngineStarting,
    EngineStopped,
    Status,
    Supervisor,
)

__all__ = [
    "STOP_SECONDS",
    "WORKER_COMMAND",
    "EngineBusy",
    "EngineClient",
    "EngineDied",
    "EngineError",
    "EngineRefused",
    "EngineStarting",
    "EngineStopped",
    "Incident",
    "RequestQuarantined",
]

logger = logging.getLogger(__name__)

Incident = Literal["restart", "replay", "quarantine"]
Event = TypeVar("Event")


class EngineBusy(EngineError):
    """As many requests wait as may."""


class RequestQuarantined(EngineError):
    """The engine died of this request: twice in it, the second time while it ran nothing else."""


class EngineClient:
    """Runs requests on an engine process that it starts, watches, replaces and stops.

    A process that says nothing for `timeout` seconds is killed; `max_queued` requests may wait
    beyond those that have a slot. Every function in `observers` is called with every `StepReport`
    before its outputs are handed out, every one in `incident_observers` with what went wrong.
    """

    def __init__(
        self,
        config: EngineConfig,
        command: Sequence[str] = WORKER_COMMAND,
        timeout: float = 60.0,
        max_queued: int = 256,
    ) -> None:
        self.observers: list[Callable[[StepReport], None]] = []
        self.incident_observers: list[Callable[[Incident], None]] = []
        self.max_requests = config.max_num_seqs + max_queued
        # Twice the slots, so that all of them can be filled again in the step they fall free.
        self._pending = Pending(2 * config.max_num_seqs)
        self._supervisor = Supervisor(config, command, timeout)
        self._supervisor.on_message = self._take
        self._supervisor.on_death = self._blame
        self._supervisor.on_end = self._end_requests

    @property
    def status(self) -> Status:
        """ "ok" while a warm engine runs."""
        return self._supervisor.status

    @property
    def ready(self) -> Ready | None:
        """What the engine said of itself; there from the first "ok" on."""
        return self._supervisor.ready

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken: true while the engine restarts, false when it is given up."""
        return self.status in ("ok", "restarting")

    @property
    def pid(self) -> int | None:
        """The engine process's, None while there is none."""
        process = self._supervisor.process
        return None if process is None else process.pid

    async def start(self) -> Ready:
        """Start the engine and wait until its models are warm.

        Raises `EngineRefused` with the engine's reason, or `EngineDied` if it ends without one.
        """
        return await self._supervisor.start()

    async def stop(self, patience: float = STOP_SECONDS) -> None:
        """End all requests and the process, which is killed if it has not left in that time."""
        await self._supervisor.stop(patience)

    def check_room(self) -> None:
        """Raises `EngineStarting`, `EngineDied` or `EngineBusy` when no request is taken now."""
        if self.ready is None and self.status == "starting":
            raise EngineStarting("the models are being loaded")
        if not self.is_alive:
            kind = EngineStopped if self.status == "stopped" else EngineDied
            raise kind(f"the engine does not run: {self.status}")
        if len(self._pending.requests) >= self.max_requests:
            raise EngineBusy(f"{self.max_requests} requests run or wait")

    async def generate(self, submit: Submit) -> AsyncGenerator[RequestOutput, None]:
        """Run a request and yield what each step gave it, ending with its finish reason.

        Closing or cancelling the iterator before the finish aborts the request in the engine.
        Restarts of the engine do not show. Raises `EngineError`.
        """
        self.check_room()
        request = self._pending.add(submit)
        try:
            self._send_requests()
            while True:
                output = await request.outputs.get()
                if isinstance(output, Exception):
                    raise output
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            if self._pending.leave(request):
                self._supervisor.send(Abort(request.id))

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, StepReport):
            _tell(self.observers, message)
            for output in message.outputs:
                self._hand_out(output)
        elif isinstance(message, Forgotten):
            self._pending.forgotten(message.request_id)
        self._send_requests()

    def _hand_out(self, output: RequestOutput) -> None:
        if output.finish_reason in ("stop", "length"):
            self._supervisor.forgive()
        if self._pending.take(output):
            self._supervisor.send(Abort(output.request_id))

    def _send_requests(self) -> None:
        """Send every request that may go to the engine now."""
        while self.status == "ok" and (request := self._pending.next()) is not None:
            self._supervisor.send(request.remainder)

    def _blame(self, reason: str) -> bool:
        """After a death: all requests wait again but the culprit; whether there is one."""
        unfinished = self._pending.inside.keys() & self._pending.requests.keys()
        culprit = self._pending.engine_died()
        self._tell_incident("restart")
        if culprit is not None:
            logger.error("request %s killed the engine twice and is quarantined", culprit.id)
            self._tell_incident("quarantine")
            culprit.outputs.put_nowait(RequestQuarantined(reason))
            return True
        logger.warning("%d unfinished requests will be replayed", len(unfinished))
        for _ in unfinished:
            self._tell_incident("replay")
        return False

    def _tell_incident(self, incident: Incident) -> None:
        _tell(self.incident_observers, incident)

    def _end_requests(self, error: EngineError) -> None:
        """No engine will follow: whoever waits is told."""
        for request in self._pending.requests.values():
            request.outputs.put_nowait(type(error)(str(error)))


def _tell(observers: Iterable[Callable[[Event], None]], event: Event) -> None:
    """Call them all: what cannot be counted is no reason to stop serving."""
    for observer in observers:
        try:
            observer(event)
        except Exception:
            logger.exception("an observer of the engine failed")
