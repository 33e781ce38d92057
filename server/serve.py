"""`falcon serve`: engine process, HTTP server, and an orderly end on SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from setproctitle import setproctitle

from engine.client import STOP_SECONDS, WORKER_COMMAND, EngineClient, EngineError
from engine.logs import configure, fields, log_loop_error
from engine.messages import Ready

from .addresses import listening, port_of, url_of
from .app import create_app
from .arguments import add_arguments
from .connections import MAX_CONNECTIONS
from .dialects import dialect_of
from .http_server import HttpServer
from .lifecycle import Life
from .metrics import Metrics
from .otlp import traces_sent
from .request_log import RequestLog
from .served import ServedModel
from .settings import Limits, Settings, SettingsError, settings_from
from .signals import StopSignals, keys_reloaded_on_hangup
from .sources import parse_flags
from .template_process import ConfinedTemplate
from .templates import BadTemplate, TemplateMaker
from .tokenizer import ChatTokenizer, load_tokenizer

if TYPE_CHECKING:
    from .tracing import Tracing

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
    engine = EngineClient(
        settings.engine, command, limits.engine_timeout, limits.max_num_queued_reqs
    )
    life = Life(engine)
    with (
        signals.caught(),
        keys_reloaded_on_hangup(settings.access.keys),
        _loaded_tokenizer(settings) as tokenizer,
        listening(settings.address) as sock,
        traces_sent(settings.otlp_traces_endpoint) as tracing,
    ):
        served = _served_model(settings, tokenizer, engine, life, tracing)
        log = RequestLog()
        engine.observers.append(log.observe_step)
        app = create_app(served, life, limits, settings.access, log)
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


def _served_model(
    settings: Settings,
    tokenizer: ChatTokenizer,
    engine: EngineClient,
    life: Life,
    tracing: Tracing | None,
) -> ServedModel:
    metrics = Metrics(settings.model_names[0])
    metrics.watch(engine, lambda: life.state == "ready")
    return ServedModel(
        names=settings.model_names,
        created=int(time.time()),
        tokenizer=tokenizer,
        engine=engine,
        metrics=metrics,
        dialect=dialect_of(
            tokenizer.template, settings.tool_call_parser, settings.reasoning_parser
        ),
        tracing=tracing,
    )


@contextlib.contextmanager
def _loaded_tokenizer(settings: Settings) -> Iterator[ChatTokenizer]:
    """The tokenizer, whose chat template runs in a process of its own as long as this is open."""
    with contextlib.ExitStack() as open_:

        def confined(
            source: str, variables: Mapping[str, str], tool_source: str | None
        ) -> ConfinedTemplate:
            template = ConfinedTemplate(source, variables, tool_source)
            return open_.enter_context(contextlib.closing(template))

        tokenizer = _load_tokenizer(settings, confined)
        if tokenizer.template is None:
            logger.warning("the model has no chat template: chat requests get a 400")
        yield tokenizer


def _load_tokenizer(settings: Settings, make_template: TemplateMaker) -> ChatTokenizer:
    folder = settings.model_folder
    try:
        return load_tokenizer(folder, make_template, settings.chat_template)
    except BadTemplate as error:
        raise SettingsError(f"{folder}: {error}") from error
    except json.JSONDecodeError as error:
        raise SettingsError(f"{folder} holds broken JSON: {error}") from error
    except Exception as error:  # tokenizers raises bare Exception for a definition it cannot read
        raise SettingsError(f"cannot read {folder}/tokenizer.json: {error}") from error


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
