"""Every request leaves one line, with the figures that its client was given."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from server.api_keys import ApiKeys, key_digest
from server.settings import Access
from tests.server_harness import Running, build_model_folder, eventually, running_server

KEY = "sk-falcon-1234"
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = build_model_folder(tmp_path_factory.mktemp("model"))
    with running_server(folder, access=Access(ApiKeys([KEY]))) as running:
        running.client.headers["authorization"] = f"Bearer {KEY}"
        yield running


class Keeper(logging.Handler):
    """Keeps the fields of each request's line, as they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: Lines = []

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = getattr(record, "fields", {})
        if fields["path"] != "/health":  # that is the harness, waiting for the server
            self.lines.append({"level": record.levelname, **fields})


@pytest.fixture
def lines() -> Iterator[Lines]:
    logger, keeper = logging.getLogger("server.request_log"), Keeper()
    logger.addHandler(keeper)
    logger.setLevel(logging.DEBUG)
    yield keeper.lines
    logger.removeHandler(keeper)
    logger.setLevel(logging.NOTSET)


def only(lines: Lines) -> dict[str, Any]:
    """The one line; it is written after the answer was."""
    eventually(lambda: len(lines) == 1)
    return lines[0]


@pytest.mark.parametrize("is_stream", [True, False])
def test_an_answer_leaves_its_usage_times_and_speculation(
    server: Running, lines: Lines, is_stream: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if is_stream else {}
    body = server.chat(
        {"say": "hello world over the hills", "step": 3}, stream=is_stream, n=2, **options
    )
    answer = server.post(body, headers={"x-request-id": "mine"})
    line = only(lines)
    text = answer.text.split("data: ")[-2] if is_stream else answer.text
    usage = json.loads(text)["usage"]
    assert {name: line[name] for name in usage if name in line} == {
        name: usage[name] for name in ("prompt_tokens", "completion_tokens")
    }
    assert line["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert (line["id"], line["method"], line["status"]) == ("mine", "POST", 200)
    assert (line["path"], line["level"]) == ("/v1/chat/completions", "INFO")
    assert line["key"] == key_digest(KEY)[:8]
    assert line["finish"] == "stop,stop"
    assert 0 < line["queue_ms"] <= line["first_token_ms"] <= line["total_ms"]
    assert line["steps"] > 2
    assert line["drafted"] == 4 * line["steps"]
    assert line["accepted"] == usage["completion_tokens"] - line["steps"]
    assert "error" not in line


def test_an_error_leaves_its_code(server: Running, lines: Lines) -> None:
    server.post(server.chat(temperature=9))
    line = only(lines)
    assert (line["status"], line["error"]) == (400, "invalid_request_error")
    assert "prompt_tokens" not in line


def test_an_error_inside_a_stream_leaves_its_code(server: Running, lines: Lines) -> None:
    server.events(server.chat({"say": "hello world", "step": 1, "error_after": 3}))
    line = only(lines)
    assert (line["status"], line["error"]) == (200, "generation_failed")
    assert "finish" not in line
    assert line["completion_tokens"] > 0


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_is_an_abort(server: Running, lines: Lines, is_stream: bool) -> None:
    submitted = server.received("Submit")
    order = {"say": "hello", "forever": True, "step": 1, "delay": 0.01}
    body = json.dumps(server.chat(order, stream=is_stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: server.received("Submit") == submitted + 1)
        if is_stream:
            sock.recv(1)
    assert server.received("Submit") == submitted + 1
    line = only(lines)
    assert (line["status"], line["finish"]) == (200 if is_stream else 499, "abort")


def test_paths_are_those_of_routes(server: Running, lines: Lines) -> None:
    for path in ("/v1/models/tiny", "/v1/models/secret", "/secret"):
        server.get(path)
    eventually(lambda: len(lines) == 3)
    assert [line["path"] for line in lines] == ["/v1/models/{name:path}"] * 2 + ["none"]


def test_requests_without_a_key_have_none(server: Running, lines: Lines) -> None:
    server.get("/v1/models", headers={"authorization": "Bearer wrong"})
    line = only(lines)
    assert (line["status"], line["error"], line["path"]) == (401, "invalid_api_key", "none")
    assert "key" not in line


def test_probes_are_told_at_debug_level(server: Running, lines: Lines) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        server.get(path)
    eventually(lambda: len(lines) == 3)
    assert {line["level"] for line in lines} == {"DEBUG"}
