"""One line in the log for each request, at its end: figures, and nobody's text. It is counted, too.

Its path is the route's own, its key a digest, its errors our codes. Speculation is what the engine
reported of it; tokens are those of `usage`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.logs import fields
from engine.messages import RequestOutput, StepReport, Submit

from .authentication import KEY_STATE, METRICS, PROBES
from .deltas import Delta
from .errors import CLIENT_CLOSED_REQUEST, ERROR_STATE
from .events import as_api_error
from .metrics import Metrics
from .middleware import REQUEST_ID_STATE

logger = logging.getLogger(__name__)

RECORD_STATE = "record"
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_QUIET = {*PROBES, METRICS}  # asked every few seconds: told at debug level, and not counted


@dataclass(slots=True)
class Record:
    """What is known so far of one request. Times are of `perf_counter`, in seconds."""

    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    slot_seconds: float = 0.0
    is_generating: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    ends: dict[int, str] = field(default_factory=dict)

    def count(self, output: RequestOutput) -> None:
        """The engine made a step of it."""
        if not output.token_ids:
            return
        if self.first is None:
            self.first = time.perf_counter()
            self.slot_seconds = output.slot_ms / 1e3
        self.steps += 1
        self.drafted += output.drafted
        self.accepted += output.accepted

    def tell(self, delta: Delta) -> None:
        """The client is told of so much."""
        self.prompt_tokens = delta.usage.prompt_tokens
        self.completion_tokens = delta.usage.completion_tokens
        self.cached_tokens = delta.usage.cached_tokens
        if delta.finish_reason is not None:
            self.ends[delta.index] = delta.finish_reason


class RequestLog:
    """Knows which requests of the engine belong to which record."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def observe_step(self, report: StepReport) -> None:
        """Count one step of the engine."""
        for output in report.outputs:
            if (record := self._records.get(output.request_id)) is not None:
                record.count(output)

    async def watching(
        self, http: Request, submits: Sequence[Submit], deltas: AsyncGenerator[Delta, None]
    ) -> AsyncGenerator[Delta, None]:
        """The same deltas, which are those of the submits; what ends them is an `ApiError`."""
        record: Record = http.scope["state"][RECORD_STATE]
        record.is_generating = True
        ids = [submit.request_id for submit in submits]
        self._records |= dict.fromkeys(ids, record)
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    record.tell(delta)
                    yield delta
        except Exception as error:
            told = as_api_error(error)
            told.note(http.scope)  # also inside a stream, which began with 200
            raise told from error
        finally:
            for request_id in ids:
                del self._records[request_id]


def arrival_of(http: Request) -> float:
    """When the request came, of `perf_counter`."""
    record: Record = http.scope["state"][RECORD_STATE]
    return record.began


class RequestLogger:
    """Writes the line, counts the answer and the error that its client was told, if any.

    Pure ASGI, and the outermost layer: nothing is answered past it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        record = state[RECORD_STATE] = Record()
        status, is_whole = CLIENT_CLOSED_REQUEST, False  # until something was answered

        async def send_noting(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            is_body = message["type"] == "http.response.body"
            is_whole = is_body and not message.get("more_body", False)

        try:
            await self.app(scope, receive, send_noting)
        finally:
            self._count(scope, status)
            _write(scope, record, status, is_whole)

    def _count(self, scope: Scope, status: int) -> None:
        method, path = _route(scope)
        if path not in _QUIET:
            self._metrics.observe_answer(path, method, status)
        if (error := scope["state"].get(ERROR_STATE)) is not None:
            self._metrics.observe_error(*error)


def _route(scope: Scope) -> tuple[str, str]:
    """Method and path from closed sets: clients cannot make up new ones."""
    method = scope["method"] if scope["method"] in _METHODS else "other"
    return method, getattr(scope.get("route"), "path", None) or "none"


def _write(scope: Scope, record: Record, status: int, is_whole: bool) -> None:
    state, now = scope["state"], time.perf_counter()
    method, path = _route(scope)
    level = logging.WARNING if status >= 500 else logging.INFO
    _, error = state.get(ERROR_STATE, (status, None))
    logger.log(
        logging.DEBUG if path in _QUIET else level,
        "request",
        extra=fields(
            method=method,
            path=path,
            status=status,
            id=state.get(REQUEST_ID_STATE),
            key=state.get(KEY_STATE),
            total_ms=_ms(now - record.began),
            error=error,
            **_generation(record, is_whole and status != CLIENT_CLOSED_REQUEST),
        ),
    )


def _generation(record: Record, is_whole: bool) -> dict[str, object]:
    """Figures of a request that came to the engine."""
    if not record.is_generating:
        return {}
    first = None if record.first is None else record.first - record.began
    reasons = [record.ends[index] for index in sorted(record.ends)]
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "cached_tokens": record.cached_tokens,
        "queue_ms": None if first is None else _ms(max(0.0, first - record.slot_seconds)),
        "first_token_ms": None if first is None else _ms(first),
        "finish": (",".join(reasons) or None) if is_whole else "abort",
        "steps": record.steps,
        "drafted": record.drafted,
        "accepted": record.accepted,
    }


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 1)
