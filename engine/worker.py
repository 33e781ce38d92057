"""The engine process: `python -m engine.worker FD`, started by `engine.client`.

Reads its `EngineConfig`, loads, says `Ready` or `Refused`, then steps while there is work and sends
one report a step. It ends when told to, when the other end of the socket is gone, or at the first
error that no single request answers for: `engine.client` starts another and replays the requests.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from .config import EngineConfig
from .logs import configure_as_told
from .messages import (
    Abort,
    Forgotten,
    Ping,
    Pong,
    Refused,
    RequestOutput,
    Shutdown,
    Submit,
    ToEngine,
)
from .wire import Connection, to_engine_decoder

if TYPE_CHECKING:
    from .engine import Engine

logger = logging.getLogger(__name__)


def main() -> int:
    """Serve one connection; the exit status."""
    configure_as_told()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the HTTP process decides when to stop
    connection = Connection(socket.socket(fileno=int(sys.argv[1])), to_engine_decoder())
    try:
        return serve(connection)
    except EOFError:
        return 0
    except Exception:
        logger.exception("the engine failed")
        return 1
    finally:
        connection.close()


def serve(connection: Connection[ToEngine]) -> int:
    """Load, then answer until `Shutdown`. Raises `EOFError` when the server is gone."""
    config, *early = connection.receive(block=True)
    if not isinstance(config, EngineConfig):
        raise TypeError(f"the first frame must be EngineConfig, not {type(config).__name__}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
    from transformers.utils.logging import disable_progress_bar

    from .loading import describe, load_engine, warm_up  # imports torch, which takes seconds

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        engine = load_engine(config)
        warm_up(engine)
    except ValueError as error:  # TargetError and DrafterError say what is wrong with the models
        connection.send(Refused(str(error)))
        return 1
    except Exception as error:
        logger.exception("loading failed")
        connection.send(Refused(f"{type(error).__name__}: {error}"))
        return 1
    if engine.target.ranks is not None:
        engine.target.ranks.watch(_end_at_once)
    gc.freeze()  # models and tables live as long as the process: keep the collector off them
    connection.send(describe(engine, config))
    return _loop(connection, engine, early)


def _loop(connection: Connection[ToEngine], engine: Engine, messages: list[ToEngine]) -> int:
    while True:
        for message in messages:
            match message:
                case Submit():
                    _submit(connection, engine, message)
                case Abort():
                    engine.abort(message.request_id)
                    connection.send(Forgotten(message.request_id))
                case Ping():
                    connection.send(Pong())
                case Shutdown():
                    return 0
        if engine.has_work:
            connection.send(engine.step())
        messages = connection.receive(block=not engine.has_work)


def _end_at_once() -> None:
    """Another rank is gone: its share of a forward may be waited for in vain."""
    logger.critical("a rank of the model has ended; its own messages say why")
    logging.shutdown()
    os._exit(1)


def _submit(connection: Connection[ToEngine], engine: Engine, request: Submit) -> None:
    """Queue a request; one that cannot run fails alone."""
    try:
        engine.submit(request)
    except ValueError:
        logger.exception("request %s was refused", request.request_id)
        connection.send(engine.report([RequestOutput(request.request_id, [], "error", 0, 0)]))


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # else nanobind reports all that `gc.freeze` keeps as leaked
