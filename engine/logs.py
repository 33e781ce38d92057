"""Log lines of both processes: for people or as JSON, and with nobody's text in them.

An exception's own text may quote a prompt, so a line has its type and the way to it alone.
Libraries are heard from warnings on: at debug level some of them print what passes through. The
engine process learns from the environment what the server was told.

Lines are written by a thread of their own: who reads them slowly, or not at all, loses lines and
stops nobody. Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

FORMATS = ("console", "json")
LEVELS = ("debug", "info", "warning", "error")
FORMAT_VARIABLE = "FALCON_LOG_FORMAT"
LEVEL_VARIABLE = "FALCON_LOG_LEVEL"
MAX_WAITING_LINES = 10_000
CLOSE_SECONDS = 1.0
STDERR = 2
_OWN = ("server", "engine", "drafter")


def configure(form: str, level: str) -> None:
    """Log to stderr in one of `FORMATS`, our own lines from one of `LEVELS` on."""
    os.environ[FORMAT_VARIABLE], os.environ[LEVEL_VARIABLE] = form, level
    handler = _LineWriter()
    handler.setFormatter(_JsonFormatter() if form == "json" else _ConsoleFormatter())
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
    for name in _OWN:
        logging.getLogger(name).setLevel(number)


def configure_as_told() -> None:
    """As the process that started this one; warnings for people where nothing was told."""
    configure(
        os.environ.get(FORMAT_VARIABLE, FORMATS[0]), os.environ.get(LEVEL_VARIABLE, "warning")
    )


def fields(**values: object) -> dict[str, Any]:
    """What a line says beside its message, as the `extra` of a logger's call; None is left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def log_loop_error(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """An event loop's exception handler. The usual one prints tasks with their results."""
    error = context.get("exception")
    found = (type(error), error, error.__traceback__) if error is not None else None
    logging.getLogger("engine").error("event loop: %s", context["message"], exc_info=found)


class _LineWriter(logging.Handler):
    """Writes to stderr, past Python's own buffer, whose lock would be held while it waits."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING_LINES)
        self._num_lost = 0
        self._thread = threading.Thread(target=self._write_lines, daemon=True, name="log")
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._num_lost += 1

    def close(self) -> None:
        """Write what waits, but not for long."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
        super().close()

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            _write(line)
            if num_lost := self._num_lost:
                self._num_lost -= num_lost
                lost = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
                text = f"{num_lost} lines were lost: nobody read them in time"
                _write(self.format(logging.makeLogRecord(lost | {"msg": text})))


def _write(line: str) -> None:
    data = (line + "\n").encode(errors="replace")
    with contextlib.suppress(OSError):  # nobody is there to read it
        while data:
            data = data[os.write(STDERR, data) :]


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # logging's name
        kind, _, trace = ei
        return "".join(traceback.format_tb(trace)) + str(kind.__qualname__)


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _ConsoleFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), f"{record.levelname.lower():<7}", record.getMessage()]
        words += [f"{name}={value}" for name, value in getattr(record, "fields", {}).items()]
        line = " ".join(words)
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _time(record: logging.LogRecord) -> str:
    stamp = datetime.fromtimestamp(record.created, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
