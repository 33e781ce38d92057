"""Connections that are slow, idle, lazy or too many are closed, and nobody else waits for them."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from server import addresses, connections
from server.addresses import Address
from tests.server_harness import PATIENCE, Running, build_model_folder, eventually, running_server

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed; raises `TimeoutError` while it has not."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.fixture
def hasty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server whose clock runs out soon."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "SEND_SECONDS"):
        monkeypatch.setattr(connections, name, 0.1)
    monkeypatch.setattr("server.request_body.READ_SECONDS", 0.1)
    monkeypatch.setattr("server.http_server.TICKS_BETWEEN_LOOKS", 1)
    with running_server(folder) as running:
        yield running


@pytest.mark.parametrize("start", [b"", b"G", GET])
def test_a_head_that_does_not_end_is_closed(hasty: Running, start: bytes) -> None:
    with connect(hasty) as slow:
        slow.sendall(start)
        assert is_closed(slow)


def test_a_head_that_trickles_is_closed(hasty: Running) -> None:
    with connect(hasty) as slow:
        for _ in range(200):
            try:
                slow.sendall(b"X")
            except (BrokenPipeError, ConnectionResetError):
                return
            time.sleep(0.02)
    raise AssertionError("it may trickle for ever")


def test_a_body_that_does_not_end_is_408(hasty: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", PATIENCE)  # who reads the body comes first
    with connect(hasty) as slow:
        slow.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        answers = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answers.startswith(b"HTTP/1.1 408")
    assert b'"code":"request_timeout"' in answers


def test_a_body_that_nobody_reads_is_closed_when_it_does_not_end(hasty: Running) -> None:
    with connect(hasty) as slow:
        slow.sendall(POST.replace(b"/v1/", b"/v2/") + b"Content-Length: 100\r\n\r\n{")
        assert slow.recv(12) == b"HTTP/1.1 404"
        assert is_closed(slow)


def test_an_idle_connection_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http_server.IDLE_SECONDS", 0.1)
    with running_server(folder) as server, connect(server) as idle:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert is_closed(idle)


def test_a_stream_that_nobody_reads_is_aborted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hasty: Running
) -> None:
    real = addresses._tcp_socket

    def small(address: Address) -> socket.socket:
        sock = real(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # and of all that it accepts
        return sock

    monkeypatch.setattr(addresses, "_tcp_socket", small)
    with running_server(folder) as server, socket.socket() as lazy:
        order = {"say": "hello world", "forever": 1, "step": 1, "delay": 0.002}
        body = json.dumps(server.chat(order, stream=True, n=8)).encode()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", server.port))
        lazy.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        eventually(lambda: server.received("Abort") == 8)


class Outlet:
    """A transport with something to send."""

    def __init__(self) -> None:
        self.unsent = 0
        self.is_aborted = False
        self.is_closed = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> None:
        return None

    def abort(self) -> None:
        self.is_aborted = True


@pytest.fixture
def connection() -> connections.GuardedProtocol:
    config = Config(lambda: None, lifespan="off", ws="none", log_config=None)
    made = connections.GuardedProtocol(config, ServerState(), {}, asyncio.new_event_loop())
    made.loop.close()
    made.connection_made(Outlet())  # type: ignore[arg-type]  # as much of one as is used
    return made


@pytest.mark.parametrize("is_closed", [True, False])
def test_an_answer_may_take_as_long_as_the_client_goes_on_taking_it(
    connection: connections.GuardedProtocol, is_closed: bool
) -> None:
    outlet = cast(Outlet, connection.transport)
    outlet.is_closed = is_closed
    if not is_closed:
        connection.pause_writing()
    outlet.unsent = 10 * connections.SEND_BYTES
    for second in range(0, 200, 20):
        outlet.unsent -= connections.SEND_BYTES
        connection.close_if_late(second)
        assert not outlet.is_aborted
    connection.close_if_late(second + connections.SEND_SECONDS)
    assert not outlet.is_aborted
    connection.close_if_late(second + connections.SEND_SECONDS + 1)
    assert outlet.is_aborted


def test_more_connections_than_may_be_are_closed_and_the_others_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    with running_server(folder) as server:
        assert server.get("/health").status_code == 200  # one of the three, and kept
        with connect(server), connect(server):
            with connect(server) as surplus:
                assert is_closed(surplus)
            assert server.get("/health").status_code == 200


def test_slow_clients_do_not_keep_others_waiting(folder: Path) -> None:
    with running_server(folder) as server, ExitStack() as open_:
        for _ in range(200):
            open_.enter_context(connect(server)).sendall(GET)
        assert server.post(server.chat("hello")).status_code == 200
