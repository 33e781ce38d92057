"""`falcon serve`: engine process, HTTP server, and an orderly end on SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
import sys
from collections.abc import Callable, Coroutine, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

from setproctitle import setproctitle

from engine.client import STOP_SECONDS, WORKER_COMMAND, EngineClient, EngineError
from engine.logs import configure, fields, log_loop_error
from engine.messages import Ready

from .addresses import listening, port_of, url_of
from .application import assembled
from .arguments import add_arguments
from .connections import MAX_CONNECTIONS
from .http_server import HttpServer
from .lifecycle import Life
from .settings import Limits, Settings, SettingsError, settings_from
from .signals import StopSignals
from .sources import parse_flags

__all__ = ["add_arguments", "parse", "run"]

logger = logging.getLogger(__name__)

USER_ERROR = 2
ENGINE_ERROR = 1
SPARE_FILES = 512

Result = TypeVar("Result")


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Flags of the command line, of a file and of the environment; exits where they are wrong."""
    try:
        return parse_flags(parser, words)
    except SettingsError as error:
        parser.exit(USER_ERROR, f"falcon serve: {error}\n")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 after an orderly end, 2 when the settings cannot be served."""
    configure(args.log_format, args.log_level)
    for name in args.unknown_variables:
        logger.warning("the environment sets %s, which is no flag of 'falcon serve'", name)
    _allow_connections()
    setproctitle("falcon serve")  # any user may read the command line, and --api-key with it
    try:
        settings = settings_from(args)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(settings))
    except SettingsError as error:
        print(f"falcon serve: {error}", file=sys.stderr)
        return USER_ERROR
    except EngineError as error:
        print(f"falcon serve: the engine did not start: {error}", file=sys.stderr)
        return ENGINE_ERROR
    return 0


async def serve(
    settings: Settings,
    command: Sequence[str] = WORKER_COMMAND,
    on_start: Callable[[int, Callable[[], None]], None] = lambda port, stop: None,
) -> None:
    """Listen, load the models, and serve until a signal arrives.

    `on_start` gets the port and a function, callable from any thread, that does what a signal does.
    Raises `SettingsError` for a folder or an address that cannot be served, and `EngineError`.
    """
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    signals, limits = StopSignals(), settings.limits
    with (
        signals.caught(),
        listening(settings.address) as sock,
        assembled(settings, command) as (app, engine, life),
    ):
        server = HttpServer(app, sock, settings.address.tls)
        url = url_of(sock, settings.address)
        on_start(port_of(sock), signals.raise_from_any_thread)
        logger.info("listening on %s, loading the model", url)
        patience = STOP_SECONDS
        try:
            if (ready := await _unless(signals, engine.start())) is not None:
                _tell_of_start(settings, ready, url)
                await _unless(signals, server.until_closed())
                is_over = await _unless(signals, _wind_down(life, limits))
                patience = STOP_SECONDS if is_over else 0.0
        finally:
            if not await _unless(signals, _end(server, engine, patience)):
                await _end(server, engine, 0.0)


async def _unless(signals: StopSignals, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` gives; None when a signal came first, which ends it."""
    working, signalled = asyncio.create_task(work), asyncio.create_task(signals.next())
    try:
        await asyncio.wait({working, signalled}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, signalled):
            task.cancel()
        await asyncio.gather(working, signalled, return_exceptions=True)


async def _wind_down(life: Life, limits: Limits) -> bool:
    """Say that we leave, then take no more work and let what there is finish in its time; true."""
    logger.info("a signal came: leaving")
    life.is_leaving = True
    await asyncio.sleep(limits.shutdown_delay)
    life.is_draining = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.shutdown_timeout):
            await life.until_idle()
    return True


async def _end(server: HttpServer, engine: EngineClient, patience: float) -> bool:
    """End answers that are left with an error event, then the engine and the connections; true.

    Without patience nobody is waited for. May be called again, also when it was cancelled.
    """
    await asyncio.gather(engine.stop(patience), server.close(patience > 0))
    return True


def _tell_of_start(settings: Settings, ready: Ready, url: str) -> None:
    """A block for people, a line for machines."""
    without = "prompt lookup" if ready.looks_up else "no speculation"
    rows = {
        "model": f"{' '.join(settings.model_names)} ({settings.engine.model})",
        "drafter": ready.drafter or f"none: {without}",
        "plan": ready.plan,
        "dtype": f"{ready.dtype} on {ready.device}",
        "context": f"{ready.context_length} tokens, {ready.max_num_seqs} requests at once",
        "address": url,
        "page": url.removesuffix("v1"),
    }
    own = f"Falcon {version('falcon-server')}"
    if settings.log_format == "json":
        logger.info("%s is ready", own, extra=fields(**rows))
    else:
        print("\n".join([own, *(f"  {name:<8} {row}" for name, row in rows.items())]), flush=True)


def _allow_connections() -> None:
    """Many systems let a process open 1,024 files, of which connections would get all."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not there on Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop
