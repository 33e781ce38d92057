"""Holds the start of a streamed answer back until its first item is there.

What fails before that is then an HTTP status, which clients understand and retry, and not an event
in a stream that began with 200.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

Item = TypeVar("Item")


class Primed(AsyncGenerator[Item, None]):
    """A stream whose first item may have been fetched ahead. `aclose` closes it at any time."""

    def __init__(self, stream: AsyncGenerator[Item, None]) -> None:
        self._stream = stream
        self._first: asyncio.Task[Item] | None = None

    async def prime(self, seconds: float) -> None:
        """Wait for the first item, but not longer than `seconds`. Raises what came instead."""
        self._first = asyncio.create_task(_first_of(self._stream))
        await asyncio.wait({self._first}, timeout=seconds)
        if self._first.done():
            self._first.result()

    async def asend(self, value: None) -> Item:
        first, self._first = self._first, None
        return await (anext(self._stream) if first is None else first)

    async def athrow(self, *error: Any) -> Item:
        return await self._stream.athrow(*error)

    async def aclose(self) -> None:
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._stream.aclose()


async def _first_of(stream: AsyncGenerator[Item, None]) -> Item:
    return await anext(stream)
