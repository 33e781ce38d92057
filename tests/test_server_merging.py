"""Several streams as one: nothing lost, order kept, and every stream closed however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from server.merging import merged


class Streams:
    """Numbered streams of (stream, item); `closed` are those that have ended."""

    def __init__(self) -> None:
        self.closed: set[int] = set()

    async def __call__(
        self, number: int, count: int, fails: bool = False
    ) -> AsyncGenerator[tuple[int, int], None]:
        try:
            for item in range(count):
                await asyncio.sleep(0)
                yield number, item
            if fails:
                raise ValueError(f"stream {number}")
        finally:
            await asyncio.sleep(0)  # what closing may do
            self.closed.add(number)


@pytest.mark.parametrize("counts", [[3], [0], [2, 5], [4, 0, 1], [1] * 8])
async def test_all_items_come_and_each_streams_own_in_order(counts: list[int]) -> None:
    make = Streams()
    found = [item async for item in merged([make(n, count) for n, count in enumerate(counts)])]
    assert sorted(found) == [(n, item) for n, count in enumerate(counts) for item in range(count)]
    for number, count in enumerate(counts):
        assert [item for n, item in found if n == number] == list(range(count))
    assert make.closed == set(range(len(counts)))


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_closes_every_stream(count: int) -> None:
    make = Streams()
    stream = merged([make(n, 10**6) for n in range(count)])
    for _ in range(5):
        await anext(stream)
    await stream.aclose()
    assert make.closed == set(range(count))


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_closes_every_stream(count: int) -> None:
    make = Streams()

    async def read() -> None:
        async for _ in merged([make(n, 10**6) for n in range(count)]):
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert make.closed == set(range(count))


async def test_the_first_error_ends_all() -> None:
    make = Streams()
    with pytest.raises(ValueError, match="stream 1"):
        async for _ in merged([make(0, 10**6), make(1, 3, fails=True), make(2, 10**6)]):
            pass
    assert make.closed == {0, 1, 2}


async def test_a_merged_stream_that_is_never_read_starts_nothing() -> None:
    make = Streams()
    await merged([make(0, 1), make(1, 1)]).aclose()
    assert make.closed == set()
