"""One replica under Ray Serve: the whole application over an engine of its own."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from typing import Any

from ray import serve
from starlette.types import Message

from engine.logs import configure

from .application import assembled
from .exchange import Exchange, GivenBack, Taken, answers
from .settings import settings_from

UNAVAILABLE = 503


class Replica:
    """Made, asked and ended by Ray, all in one event loop.

    Its engine restarts by itself; when that is given up, Ray is told, and replaces the replica.
    """

    async def __init__(self, flags: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits
        """Returns once the models are warm. Raises `SettingsError` and `EngineError`."""
        args = argparse.Namespace(**flags)
        configure(args.log_format, args.log_level)
        self._name: str = serve.get_replica_context().replica_tag
        self._open = ExitStack()
        application = self._open.enter_context(assembled(settings_from(args)))
        self._app, self._engine, self._life = application
        try:
            await self._engine.start()
        except BaseException:
            await self._engine.stop(0.0)
            self._open.close()
            raise

    async def answer(self, exchange: Exchange) -> AsyncGenerator[Taken | GivenBack | Message, None]:
        """The ASGI messages of an answer, behind word that it has been taken on.

        Where the engine was given up, requests are given back in place of being refused. None of
        them is to blame for that, for who kills an engine twice is quarantined.
        """
        yield Taken(self._name)
        async with aclosing(answers(self._app, exchange)) as messages:
            async for message in messages:
                if message.get("status") == UNAVAILABLE and self._life.is_hopeless:
                    yield GivenBack()
                    return
                yield message

    async def exposition(self) -> tuple[str, bytes]:
        """Its name and its metrics."""
        metrics = self._app.state.served.metrics
        return self._name, await asyncio.to_thread(metrics.exposition)

    async def check_health(self) -> None:
        """Raises when only a new replica helps. A silent engine is replaced by its supervisor."""
        if self._life.is_hopeless:
            raise RuntimeError("the engine is given up")

    def __del__(self) -> None:
        """The engine ends with this process."""
        self._open.close()
