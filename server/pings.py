"""Comments that keep a silent event stream open: proxies close what says nothing for a minute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

PING = b": ping\n\n"


async def pinged(
    events: AsyncGenerator[bytes, None], seconds: float
) -> AsyncGenerator[bytes, None]:
    """The same events, with a comment whenever none came for so long. Closing it closes them."""
    async with aclosing(events):
        while True:
            coming = asyncio.create_task(_next(events))
            try:
                while not (await asyncio.wait({coming}, timeout=seconds))[0]:
                    yield PING
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            if (event := coming.result()) is None:
                return
            yield event


async def _next(events: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(events, None)
