"""`falcon serve`: engine process, HTTP server, and an orderly end on SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import uvicorn
from setproctitle import setproctitle

from engine.client import WORKER_COMMAND, EngineClient, EngineError
from engine.messages import Ready

from .api_keys import ApiKeys, BadKeys
from .app import create_app
from .connections import IDLE_SECONDS, GuardedProtocol
from .dialects import dialect_of
from .metrics import Metrics
from .served import ServedModel
from .settings import Settings, SettingsError, add_arguments, settings_from
from .template_process import ConfinedTemplate
from .templates import BadTemplate, TemplateMaker
from .tokenizer import ChatTokenizer, load_tokenizer

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
CLOSE_SECONDS = 2.0
TICKS_BETWEEN_LOOKS = 10
USER_ERROR = 2
ENGINE_ERROR = 1


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 after an orderly end, 2 when the command line cannot be served."""
    _configure_logging()
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
    """Start the engine, listen, and run until a signal arrives.

    `on_start` gets the port and a function, callable from any thread, that does what a signal does.
    Raises `SettingsError` for a folder or an address that cannot be served, and `EngineError`.
    """
    signals: asyncio.Queue[None] = asyncio.Queue()
    limits = settings.limits
    engine = EngineClient(
        settings.engine, command, limits.engine_timeout, limits.max_num_queued_reqs
    )
    with (
        _signals_into(signals),
        _loaded_tokenizer(settings) as tokenizer,
        _listening_socket(settings) as sock,
        _reloaded_on_hangup(settings.access.keys),
    ):
        try:
            ready = await _unless_signalled(engine, signals)
            if ready is None:
                return
            print(_startup_block(settings, ready, _address(sock)), flush=True)
            server = _http_server(settings, ready, tokenizer, engine)
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            on_start(sock.getsockname()[1], _stop_from_any_thread(signals))
            await _until_signalled(serving, server, signals, engine)
        finally:
            await engine.stop()


def _stop_from_any_thread(signals: asyncio.Queue[None]) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.call_soon_threadsafe(signals.put_nowait, None)

    return stop


async def _unless_signalled(engine: EngineClient, signals: asyncio.Queue[None]) -> Ready | None:
    """Wait for the engine; None when a signal came first."""
    starting = asyncio.create_task(engine.start())
    signalled = asyncio.create_task(signals.get())
    try:
        await asyncio.wait({starting, signalled}, return_when=asyncio.FIRST_COMPLETED)
        return await starting if starting.done() else None
    finally:
        for task in (starting, signalled):
            task.cancel()
        await asyncio.gather(starting, signalled, return_exceptions=True)


async def _until_signalled(
    serving: asyncio.Task[None],
    server: uvicorn.Server,
    signals: asyncio.Queue[None],
    engine: EngineClient,
) -> None:
    """First signal: stop listening, let streams finish for 5 s. Second: end them at once.

    Streams that are left when the engine stops end with an error event.
    """
    signalled = asyncio.create_task(signals.get())
    await asyncio.wait({serving, signalled}, return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    if not serving.done():
        server.should_exit = True
        hurry = asyncio.create_task(signals.get())
        await asyncio.wait(
            {serving, hurry}, timeout=DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
    await engine.stop()
    await serving


class _Server(uvicorn.Server):
    """uvicorn that closes late connections.

    It has no signal handlers: its own would raise the signal again after the drain.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if counter % TICKS_BETWEEN_LOOKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in [*self.server_state.connections]:
                assert isinstance(connection, GuardedProtocol)
                connection.close_if_late(now)
        return await super().on_tick(counter)


def _http_server(
    settings: Settings, ready: Ready, tokenizer: ChatTokenizer, engine: EngineClient
) -> uvicorn.Server:
    metrics = Metrics(settings.model_name)
    engine.observers.append(metrics.observe_step)
    engine.incident_observers.append(metrics.observe_incident)
    served = ServedModel(
        name=settings.model_name,
        created=int(time.time()),
        context_length=ready.context_length,
        tokenizer=tokenizer,
        engine=engine,
        metrics=metrics,
        scores_prompts=ready.scores_prompts,
        dialect=dialect_of(
            tokenizer.template, settings.tool_call_parser, settings.reasoning_parser
        ),
    )
    config = uvicorn.Config(
        create_app(served, settings.limits, settings.access),
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(DRAIN_SECONDS + CLOSE_SECONDS),
    )
    return _Server(config)


@contextlib.contextmanager
def _loaded_tokenizer(settings: Settings) -> Iterator[ChatTokenizer]:
    """The tokenizer, whose chat template runs in a process of its own as long as this is open."""
    with contextlib.ExitStack() as open_:

        def confined(
            source: str, variables: Mapping[str, str], tool_source: str | None
        ) -> ConfinedTemplate:
            template = ConfinedTemplate(source, variables, tool_source)
            return open_.enter_context(contextlib.closing(template))

        tokenizer = _load_tokenizer(settings.model_folder, confined)
        if tokenizer.template is None:
            logger.warning("the model has no chat template: chat requests get a 400")
        yield tokenizer


def _load_tokenizer(folder: Path, make_template: TemplateMaker) -> ChatTokenizer:
    try:
        return load_tokenizer(folder, make_template)
    except BadTemplate as error:
        raise SettingsError(f"{folder}: {error}") from error
    except json.JSONDecodeError as error:
        raise SettingsError(f"{folder} holds broken JSON: {error}") from error
    except Exception as error:  # tokenizers raises bare Exception for a definition it cannot read
        raise SettingsError(f"cannot read {folder}/tokenizer.json: {error}") from error


def _listening_socket(settings: Settings) -> socket.socket:
    """Bound before the models load, so that a taken port is known at once. Not yet listening."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)  # asyncio asks it whether to send at once
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): "
            "stop what uses it, or choose another with --host and --port"
        ) from error
    return sock


@contextlib.contextmanager
def _signals_into(queue: asyncio.Queue[None]) -> Iterator[None]:
    """Put SIGINT and SIGTERM into `queue`; off the main thread there are none to catch."""
    loop = asyncio.get_running_loop()
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, queue.put_nowait, None)
            caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _reloaded_on_hangup(keys: ApiKeys) -> Iterator[None]:
    """Read the key file again on SIGHUP, where there are signals."""

    def reload() -> None:
        try:
            keys.reload()
        except BadKeys as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("the API keys were read again")

    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, reload)
    except (ValueError, RuntimeError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _startup_block(settings: Settings, ready: Ready, address: str) -> str:
    rows = {
        "model": f"{settings.model_name} ({settings.engine.model})",
        "drafter": ready.drafter or "none: no speculation",
        "plan": ready.plan,
        "dtype": f"{ready.dtype} on {ready.device}",
        "context": f"{ready.context_length} tokens, {ready.max_num_seqs} requests at once",
        "address": f"http://{address}/v1",
        "page": f"http://{address}/",
    }
    lines = [f"  {name:<8} {value}" for name, value in rows.items()]
    return "\n".join([f"Falcon {version('falcon-server')}", *lines])


def _configure_logging() -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # At debug level it logs every event, that is, what the model says.
    logging.getLogger("sse_starlette").setLevel(logging.WARNING)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not there on Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop
