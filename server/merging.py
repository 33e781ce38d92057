"""Several streams as one, for a request of several choices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Items of all streams as they come, each stream's own in their order.

    Ends when all have ended. The first exception ends it, and is raised. However it ends, also by
    being closed early, every stream is closed.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for item in stream:
                yield item
        return
    arrived: asyncio.Queue[Item | _End] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(stream, arrived)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            arrival = await arrived.get()
            if not isinstance(arrival, _End):
                yield arrival
            elif arrival.error is not None:
                raise arrival.error
            else:
                running -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _End:
    """A stream has ended, by `error` if not in order."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


async def _pump(stream: AsyncGenerator[Item, None], arrived: asyncio.Queue[Item | _End]) -> None:
    """One task runs a stream from its first item to its closing."""
    error = None
    try:
        async with aclosing(stream):
            async for item in stream:
                arrived.put_nowait(item)
    except Exception as failure:  # noqa: BLE001  # the reader raises it
        error = failure
    arrived.put_nowait(_End(error))
