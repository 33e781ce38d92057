"""The server under load, on its deadlines, and while its engine is away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from prometheus_client.parser import text_string_to_metric_families

from engine.pending import Pending
from server.answering import key_of
from server.settings import Limits
from tests.server_harness import PATIENCE, Running, build_model_folder, eventually, running_server

SLOTS = 4  # the default
ENDLESS = {"say": "hello world", "forever": 1, "step": 1, "delay": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder) as running:
        yield running


def metric(server: Running, name: str) -> float:
    """The value of a metric that has one sample."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return next(s.value for f in families for s in f.samples if s.name == name)


def in_flight(server: Running) -> float:
    return metric(server, "vllm:num_requests_running") + metric(server, "vllm:num_requests_waiting")


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def open_stream(server: Running, stack: ExitStack, order: dict[str, object]) -> httpx.Response:
    """A stream that has begun and is not read; it is closed with the stack."""
    body = server.chat(order, stream=True)
    stream = server.client.stream("POST", "/v1/chat/completions", json=body)
    answer = stack.enter_context(stream)
    assert answer.status_code == 200
    return answer


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_full_queue_is_429_and_one_place_less_is_not(folder: Path, is_stream: bool) -> None:
    limits = Limits(max_num_queued_reqs=2)
    with running_server(folder, limits=limits) as server, ExitStack() as open_:
        for _ in range(SLOTS + 1):
            open_stream(server, open_, ENDLESS)
        assert server.post(server.chat("one place is left", stream=is_stream)).status_code == 200
        open_stream(server, open_, ENDLESS)
        answer = server.post(server.chat("none is", stream=is_stream))
        error = error_of(answer, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert int(answer.headers["retry-after"]) > 0


def test_a_full_queue_is_found_before_the_prompt_is_tokenised(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(max_num_queued_reqs=0)
    with running_server(folder, limits=limits) as server, ExitStack() as open_:
        for _ in range(SLOTS):
            open_stream(server, open_, ENDLESS)
        monkeypatch.setattr("server.routes.prepare", None)
        error_of(server.post(server.chat()), 429)


@pytest.mark.parametrize("is_stream", [True, False])
def test_no_token_in_time_is_504_and_frees_the_slot(folder: Path, is_stream: bool) -> None:
    with running_server(folder, limits=Limits(queue_timeout=0.2)) as server:
        answer = server.post(server.chat({"say": "hello", "stall_after": 0}, stream=is_stream))
        assert error_of(answer, 504)["code"] == "queue_timeout"
        assert int(answer.headers["retry-after"]) > 0
        eventually(lambda: server.received("Abort") == 1)
        assert in_flight(server) == 0


def test_the_queue_timeout_ends_with_the_first_token(folder: Path) -> None:
    with running_server(folder, limits=Limits(queue_timeout=2.0)) as server:
        order = {"say": "over the hills " * 6, "step": 1, "delay": 0.15}
        usage = server.post(server.chat(order)).json()["usage"]
        assert usage["completion_tokens"] * 0.15 > 2.0


def test_time_up_in_mid_stream_is_an_error_event_and_frees_the_slot(folder: Path) -> None:
    with running_server(folder, limits=Limits(request_timeout=5.0)) as server:
        _, first, *_, error, done = server.events(server.chat(ENDLESS | {"delay": 0.1}))
        assert first["choices"][0]["delta"]["content"]
        assert error["error"]["code"] == "deadline_exceeded"
        assert done == "[DONE]"
        eventually(lambda: server.received("Abort") == 1)


def test_the_clients_own_time_limit_counts_if_it_is_shorter(server: Running) -> None:
    answer = server.post(server.chat(ENDLESS), headers={"x-request-timeout": "0.5"})
    assert error_of(answer, 504)["code"] == "deadline_exceeded"
    assert answer.headers["x-should-retry"] == "false"
    assert server.post(server.chat(), headers={"x-request-timeout": "99999"}).status_code == 200


@pytest.mark.parametrize("header", ["0", "0.0", "-1", "abc", "nan", "inf", "1e3", "", "9" * 9])
def test_a_time_limit_that_is_none_is_400(server: Running, header: str) -> None:
    error = error_of(server.post(server.chat(), headers={"x-request-timeout": header}), 400)
    assert error["param"] == "x-request-timeout"


def test_time_limits_of_0_are_off(folder: Path) -> None:
    with running_server(folder, limits=Limits(queue_timeout=0, request_timeout=0)) as server:
        assert server.post(server.chat()).status_code == 200


def test_a_killed_engine_is_503_in_health_and_nowhere_else(folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_server(folder, "--gate", str(gate)) as server:
        order = {"say": "over the hills " * 6, "step": 1, "delay": 0.01}
        whole = server.post(server.chat(order)).json()
        with ThreadPoolExecutor(9) as pool:
            answers = [pool.submit(server.post, server.chat(order)) for _ in range(8)]
            eventually(lambda: in_flight(server) == 8)
            os.kill(server.worker_pid(), signal.SIGKILL)
            eventually(lambda: server.get("/health").status_code == 503)
            late = pool.submit(server.post, server.chat("late"))
            eventually(lambda: in_flight(server) == 9)
            gate.touch()
            eventually(lambda: server.get("/health").status_code == 200)
            for answer in answers:
                reply = answer.result(PATIENCE).json()
                assert reply["choices"] == whole["choices"]
                assert reply["usage"] == whole["usage"]
            assert late.result(PATIENCE).status_code == 200
        assert metric(server, "falcon:engine_restarts_total") == 1
        assert metric(server, "falcon:requests_replayed_total") == 8
        assert metric(server, "falcon:requests_quarantined_total") == 0


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_poisonous_request_is_503_without_a_retry(folder: Path, is_stream: bool) -> None:
    with running_server(folder) as server:
        answer = server.post(server.chat({"die_at": 0}, stream=is_stream))
        error = error_of(answer, 503)
        assert (error["type"], error["code"]) == ("server_error", "request_quarantined")
        assert answer.headers["x-should-retry"] == "false"
        assert server.post(server.chat()).status_code == 200
        assert metric(server, "falcon:requests_quarantined_total") == 1


def test_a_poisonous_request_in_mid_stream_ends_with_one_error_event(folder: Path) -> None:
    with running_server(folder) as server:
        events = server.events(server.chat(ENDLESS | {"die_at": 4}))
        errors = [event for event in events if "error" in event]
        assert [error["error"]["code"] for error in errors] == ["request_quarantined"]
        assert events[-2:] == [*errors, "[DONE]"]


def test_an_engine_that_is_given_up_is_503_from_then_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.supervisor.BACKOFF_SECONDS", 0.001)
    with running_server(folder, "--lives", "1") as server, ExitStack() as open_:
        stream = open_stream(server, open_, ENDLESS)
        os.kill(server.worker_pid(), signal.SIGKILL)
        text = stream.read().decode()
        assert "engine_unavailable" in text
        assert text.endswith("data: [DONE]\n\n")
        health = server.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "engine is given up"})
        answer = server.post(server.chat())
        assert error_of(answer, 503)["code"] == "engine_unavailable"
        assert int(answer.headers["retry-after"]) > 0


def test_clients_that_leave_at_any_point_leave_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Pending] = []

    def spy(room: int) -> Pending:
        made.append(Pending(room))
        return made[-1]

    monkeypatch.setattr("engine.client.Pending", spy)
    with running_server(folder) as server:
        server.events(server.chat())  # sse-starlette keeps one task from the first stream on
        files, tasks = open_files(), tasks_of(server)
        with ThreadPoolExecutor(10) as pool:
            for gone in [pool.submit(leave_at, server, point) for point in range(500)]:
                gone.result(PATIENCE)
        assert server.received("Submit") > 20
        eventually(lambda: in_flight(server) == 0)
        eventually(lambda: open_files() <= files and tasks_of(server) <= tasks)
        assert server.post(server.chat()).status_code == 200
        eventually(lambda: not made[0].requests and not made[0].inside)


def leave_at(server: Running, point: int) -> None:
    """Send a request, or part of it, read a little or nothing, and go; sometimes with a reset."""
    body = json.dumps(server.chat(ENDLESS, stream=point % 2 == 0)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    data = head.encode() + body
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.settimeout(0.01 * (point % 13))
        if point % 5 == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.sendall(data[: len(data) * point // 30])
        with contextlib.suppress(TimeoutError, BlockingIOError):
            sock.recv(point * 20 + 1)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def tasks_of(server: Running) -> int:
    return len(asyncio.all_tasks(server.loop))


def key_from(authorization: str) -> str:
    headers = [(b"authorization", authorization.encode())]
    return key_of(Request({"type": "http", "headers": headers}))


def test_a_key_is_the_same_for_one_token_and_does_not_show_it() -> None:
    assert key_from("Bearer secret") == key_from("bearer  secret") != key_from("Bearer other")
    assert "secret" not in key_from("Bearer secret")
    assert key_from("Basic secret") == key_from("Bearer ") == key_from("") == ""


def test_the_engine_gets_the_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telling = Path(__file__).with_name("telling_worker.py")
    monkeypatch.setattr("tests.server_harness.WORKER", telling)
    with running_server(folder) as server:
        for authorization in ("", "Bearer secret"):
            headers = {"authorization": authorization}
            reply = server.post(server.chat({"tell": "key"}), headers=headers).json()
            said = reply["choices"][0]["message"]["content"]
            assert json.loads(said) == key_from(authorization)
