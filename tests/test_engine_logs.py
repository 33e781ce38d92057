"""Log lines in both forms: complete, on one line, and without the text of exceptions."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine import logs

CANARY = "canary7f3a"


@pytest.fixture(params=logs.FORMATS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stderr(form: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged, at debug level."""
    root, own = logging.getLogger(), [logging.getLogger(name) for name in logs._OWN]
    saved = [*root.handlers], root.level, [logger.level for logger in own]
    for name in (logs.FORMAT_VARIABLE, logs.LEVEL_VARIABLE):
        monkeypatch.setenv(name, "")
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    logs.configure(form, "debug")
    yield written
    root.handlers, root.level = saved[0], saved[1]
    for logger, level in zip(own, saved[2], strict=True):
        logger.setLevel(level)


def test_a_line_has_time_level_message_and_fields(form: str, stderr: io.StringIO) -> None:
    extra = logs.fields(id="r1", total_ms=1.5, left_out=None)
    logging.getLogger("server.x").info("GET %s", "/livez", extra=extra)
    [line] = stderr.getvalue().splitlines()
    if form == "json":
        found = json.loads(line)
        assert found.pop("time").endswith("Z")
        assert found == {
            "level": "info",
            "logger": "server.x",
            "message": "GET /livez",
            "id": "r1",
            "total_ms": 1.5,
        }
    else:
        assert line.endswith("Z info    GET /livez id=r1 total_ms=1.5")


def test_an_exception_is_its_type_and_the_way_to_it(form: str, stderr: io.StringIO) -> None:
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        logging.getLogger("engine").exception("it failed")
    text = stderr.getvalue()
    assert "it failed" in text
    assert "RuntimeError" in text
    assert "test_engine_logs.py" in text
    assert CANARY not in text
    assert len(text.splitlines()) == 1 or form == "console"


def test_libraries_are_heard_from_warnings_on(stderr: io.StringIO) -> None:
    for name in ("sse_starlette.sse", "uvicorn.error", "asyncio"):
        logging.getLogger(name).debug(CANARY)
        logging.getLogger(name).info(CANARY)
    assert stderr.getvalue() == ""
    logging.getLogger("asyncio").warning("careful")
    assert "careful" in stderr.getvalue()


def test_what_a_task_died_of_is_not_quoted(stderr: io.StringIO) -> None:
    async def leave_a_failed_task() -> None:
        asyncio.get_running_loop().set_exception_handler(logs.log_loop_error)

        async def fail() -> None:
            raise RuntimeError(CANARY)

        asyncio.create_task(fail())  # noqa: RUF006  # nobody is to look at it
        await asyncio.sleep(0.01)

    asyncio.run(leave_a_failed_task())
    assert "never retrieved" in stderr.getvalue()
    assert "RuntimeError" in stderr.getvalue()
    assert CANARY not in stderr.getvalue()


def test_a_process_that_it_starts_logs_the_same_way(form: str, stderr: io.StringIO) -> None:
    code = (
        "import logging; from engine.logs import *; configure_as_told(); "
        "logging.getLogger('engine').debug('hello')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stderr.startswith("{" if form == "json" else "2")
    assert "hello" in done.stderr
