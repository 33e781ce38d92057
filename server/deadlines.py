"""How long a request may take: the server's limits and the client's own, on the monotonic clock.

Time is up before the first byte: 504. Later: an error event in the stream. 503 is kept for an
engine that is away and 429 for a full queue, so that a balancer can tell the three apart.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self, TypeVar

from engine.client import EngineError

from .errors import deadline_exceeded, from_engine, invalid, queue_timeout

Item = TypeVar("Item")

HEADER = "x-request-timeout"
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Times of the event loop's clock; None is never. The first item is due by the earlier one."""

    first: float | None
    last: float | None

    @classmethod
    def starting_now(cls, queue_seconds: float, total_seconds: float, header: str | None) -> Self:
        """The server's two limits, 0 for none, and what the client sent as `X-Request-Timeout`.

        Raises `ApiError` 400.
        """
        now = asyncio.get_running_loop().time()
        limits = [total_seconds] if total_seconds else []
        if header is not None:
            limits.append(_parse(header))
        return cls(
            first=now + queue_seconds if queue_seconds else None,
            last=now + min(limits) if limits else None,
        )


def _parse(header: str) -> float:
    seconds = float(header) if _SECONDS.fullmatch(header) else 0.0
    if seconds <= 0:
        raise invalid("'X-Request-Timeout' must be a number of seconds above 0.", HEADER)
    return seconds


async def in_time(
    stream: AsyncGenerator[Item, None], deadlines: Deadlines
) -> AsyncGenerator[Item, None]:
    """The same items, as long as they come in time.

    Raises `ApiError` when one does not, or when the engine fails; the stream is closed either way.
    """
    due = [time for time in (deadlines.first, deadlines.last) if time is not None]
    next_due = min(due, default=None)
    async with aclosing(stream):
        while True:
            try:
                async with asyncio.timeout_at(next_due):
                    item = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                is_late = next_due == deadlines.last
                raise (deadline_exceeded() if is_late else queue_timeout()) from None
            except EngineError as error:
                raise from_engine(error) from error
            yield item
            next_due = deadlines.last
