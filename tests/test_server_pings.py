"""Keep-alive comments: only while nothing comes, and never in the way of an event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from server.pings import PING, pinged


class Events:
    """Waits for `gate` before each of so many events; `is_closed` when it has ended."""

    def __init__(self, count: int) -> None:
        self.gate = asyncio.Semaphore(0)
        self.count = count
        self.is_closed = False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(self.count):
                await self.gate.acquire()
                yield b"%d" % number
        finally:
            self.is_closed = True


async def test_comments_come_while_nothing_else_does_and_stop_when_it_does() -> None:
    events = Events(3)
    stream = pinged(events(), 0.01)
    assert [await anext(stream) for _ in range(3)] == [PING] * 3
    for _ in range(3):
        events.gate.release()
    assert [event async for event in stream] == [b"0", b"1", b"2"]
    assert events.is_closed


async def test_a_busy_stream_has_no_comments_however_long_it_lasts() -> None:
    async def busy() -> AsyncGenerator[bytes, None]:
        for _ in range(40):
            await asyncio.sleep(0.015)
            yield b"x"

    assert [event async for event in pinged(busy(), 60.0)] == [b"x"] * 40


async def test_closing_while_silent_closes_the_events() -> None:
    events = Events(1)
    stream = pinged(events(), 0.001)
    assert await anext(stream) == PING
    await stream.aclose()
    assert events.is_closed


async def test_a_failure_of_the_events_is_raised() -> None:
    async def failing() -> AsyncGenerator[bytes, None]:
        yield b"x"
        raise ValueError("broken")

    stream = pinged(failing(), 1)
    assert await anext(stream) == b"x"
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)
