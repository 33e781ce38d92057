"""Log lines in both forms: complete, on one line, and without the text of exceptions."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from engine import logs

CANARY = "canary7f3a"


@pytest.fixture(params=logs.FORMATS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def log(
    form: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[[], str]]:
    """What was logged, at debug level; asked for once."""
    root, own = logging.getLogger(), [logging.getLogger(name) for name in logs._OWN]
    saved = [*root.handlers], root.level, [logger.level for logger in own]
    for name in (logs.FORMAT_VARIABLE, logs.LEVEL_VARIABLE):
        monkeypatch.setenv(name, "")
    logs.configure(form, "debug")

    def written() -> str:
        for handler in root.handlers:
            handler.close()
        return capfd.readouterr().err

    yield written
    root.handlers, root.level = saved[0], saved[1]
    for logger, level in zip(own, saved[2], strict=True):
        logger.setLevel(level)


def test_a_line_has_time_level_message_and_fields(form: str, log: Callable[[], str]) -> None:
    extra = logs.fields(id="r1", total_ms=1.5, left_out=None)
    logging.getLogger("server.x").info("GET %s", "/livez", extra=extra)
    [line] = log().splitlines()
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


def test_an_exception_is_its_type_and_the_way_to_it(form: str, log: Callable[[], str]) -> None:
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        logging.getLogger("engine").exception("it failed")
    text = log()
    assert "it failed" in text
    assert "RuntimeError" in text
    assert "test_engine_logs.py" in text
    assert CANARY not in text
    assert len(text.splitlines()) == 1 or form == "console"


def test_libraries_are_heard_from_warnings_on(log: Callable[[], str]) -> None:
    for name in ("sse_starlette.sse", "uvicorn.error", "asyncio"):
        logging.getLogger(name).debug(CANARY)
        logging.getLogger(name).info(CANARY)
    logging.getLogger("asyncio").warning("careful")
    text = log()
    assert "careful" in text
    assert CANARY not in text


def test_what_a_task_died_of_is_not_quoted(log: Callable[[], str]) -> None:
    async def leave_a_failed_task() -> None:
        asyncio.get_running_loop().set_exception_handler(logs.log_loop_error)

        async def fail() -> None:
            raise RuntimeError(CANARY)

        asyncio.create_task(fail())  # noqa: RUF006  # nobody is to look at it
        await asyncio.sleep(0.01)

    asyncio.run(leave_a_failed_task())
    text = log()
    assert "never retrieved" in text
    assert "RuntimeError" in text
    assert CANARY not in text


def test_a_process_that_it_starts_logs_the_same_way(form: str, log: Callable[[], str]) -> None:
    code = (
        "import logging; from engine.logs import *; configure_as_told(); "
        "logging.getLogger('engine').debug('hello')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stderr.startswith("{" if form == "json" else "2")
    assert "hello" in done.stderr


def test_a_log_that_nobody_reads_stops_nobody_and_tells_what_was_lost(form: str) -> None:
    code = (
        "import logging, sys; from engine import logs; logs.MAX_WAITING_LINES = 100; "
        f"logs.configure('{form}', 'info'); log = logging.getLogger('engine')\n"
        "for number in range(3000): log.info('line %d', number)\n"
        "print('done', flush=True); sys.stdin.read(); log.info('last')"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == b"done\n"
        _, err = it.communicate(b"", timeout=60)
    assert it.returncode == 0
    assert b"lines were lost" in err


def test_a_log_that_nobody_can_read_stops_nobody() -> None:
    code = (
        "import logging, os, sys; from engine import logs; logs.configure('json', 'info')\n"
        "for number in range(9): logging.getLogger('engine').info('line %d', number)"
    )
    pipe = subprocess.PIPE
    it = subprocess.Popen([sys.executable, "-c", code], stderr=pipe)
    assert it.stderr is not None
    it.stderr.close()
    assert it.wait(60) == 0
