"""Signals as events of the loop. Off the main thread there are none to catch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator

from .api_keys import ApiKeys, BadKeys

logger = logging.getLogger(__name__)


class StopSignals:
    """SIGINT and SIGTERM, and what tests do in their place."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[None] = asyncio.Queue()

    async def next(self) -> None:
        """Returns once for each of them."""
        await self._queue.get()

    def raise_from_any_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, None)

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        with (
            _handled(signal.SIGINT, lambda: self._queue.put_nowait(None)),
            _handled(signal.SIGTERM, lambda: self._queue.put_nowait(None)),
        ):
            yield


@contextlib.contextmanager
def keys_reloaded_on_hangup(keys: ApiKeys) -> Iterator[None]:
    """Read the key file again on SIGHUP; keys that cannot be used change nothing."""

    def reload() -> None:
        try:
            keys.reload()
        except BadKeys as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("the API keys were read again")

    with _handled(signal.SIGHUP, reload):
        yield


@contextlib.contextmanager
def _handled(number: signal.Signals, handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, handler)
    except (ValueError, RuntimeError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(number)
