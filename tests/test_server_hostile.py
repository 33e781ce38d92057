"""Malformed and malicious bytes on raw sockets: refused or closed, never repeated."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import connections, middleware
from server.api_keys import ApiKeys
from server.settings import Access
from tests.server_harness import PATIENCE, Running, build_model_folder, running_server

CANARY = b"canary7f3a"
KEY = b"sk-falcon-1234"
HEAD = b"Host: x\r\nAuthorization: Bearer " + KEY + b"\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /v1/models HTTP/1.1\r\n" + HEAD


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder, access=Access(ApiKeys([KEY.decode()]))) as running:
        running.client.headers["authorization"] = f"Bearer {KEY.decode()}"
        yield running


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


def answers_to(server: Running, data: bytes) -> bytes:
    """Everything that the server says until it closes the connection, which it must."""
    with connect(server) as sock:
        try:
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65536), b""))
        except (ConnectionResetError, BrokenPipeError):
            return b""


def statuses(answers: bytes) -> list[int]:
    """The statuses of pipelined answers; bodies of errors must be OpenAI's error object."""
    found = []
    while answers:
        head, _, rest = answers.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        length = int(headers[b"content-length"])
        body, answers = rest[:length], rest[length:]
        found.append(int(first.split()[1]))
        if found[-1] >= 400 and body:
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    return found


CLOSE = b"Connection: close\r\n\r\n"
MALFORMED = {
    "not HTTP": CANARY + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + CANARY,
    "NUL bytes": b"\0" * 100 + b"\r\n\r\n",
    "HTTP/0.9": b"GET /" + CANARY + b"\r\n\r\n",
    "HTTP/1.9": b"GET /health HTTP/1.9\r\n" + HEAD + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "empty lines": b"\r\n" * 3 + GET + CLOSE,
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "tab in the line": b"GET\t/health HTTP/1.1\r\n" + HEAD + b"\r\n",
    "blank in the target": b"GET /" + CANARY + b" x HTTP/1.1\r\n" + HEAD + b"\r\n",
    "raw UTF-8 in the target": "GET /é HTTP/1.1\r\n".encode() + HEAD + b"\r\n",
    "NUL in a header": GET + b"X-A: " + CANARY + b"\0\r\n\r\n",
    "CR in a header": GET + b"X-A: a\rX-B: " + CANARY + b"\r\n\r\n",
    "no header name": GET + b": " + CANARY + b"\r\n\r\n",
    "no colon": GET + CANARY + b"\r\n\r\n",
    "blank before the colon": GET + b"Content-Length : 4\r\n\r\n" + CANARY,
    "two lengths": POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n" + CANARY,
    "two lengths in one": POST + b"Content-Length: 4, 5\r\n\r\n" + CANARY,
    "negative length": POST + b"Content-Length: -1\r\n\r\n" + CANARY,
    "signed length": POST + b"Content-Length: +4\r\n\r\n" + CANARY,
    "hexadecimal length": POST + b"Content-Length: 0x4\r\n\r\n" + CANARY,
    "endless length": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + CANARY,
    "length and chunks": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + GET
    + CLOSE,
    "chunks in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
    "gzip before chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two encodings": POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n",
    "unknown encoding": POST + b"Transfer-Encoding: x" + CANARY + b"\r\n\r\n0\r\n\r\n",
    "vertical tab in the encoding": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + CANARY + b"\r\n",
    "negative chunk": CHUNKED + b"-4\r\n" + CANARY,
    "chunk over 64 bits": CHUNKED + b"F" * 30 + b"\r\n" + CANARY,
    "chunk longer than said": CHUNKED + b"4\r\n" + CANARY + b"\r\n0\r\n\r\n",
    "endless head": GET + b"X-A: " + CANARY * 10_000,
    "endless line": b"GET /" + CANARY * 10_000,
    "endless chunk head": CHUNKED + b"4;" + CANARY * 10_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_400_and_closed(server: Running, name: str) -> None:
    answers = answers_to(server, MALFORMED[name])
    cut_off = name.startswith("endless") and not answers  # closed while the client still sent
    assert cut_off or statuses(answers) == [400]
    assert CANARY not in answers
    assert server.get("/health").status_code == 200


REFUSED = {
    "absolute target": (b"GET http://x/v1/models HTTP/1.1\r\n" + HEAD + CLOSE, 404),
    "star target": (b"OPTIONS * HTTP/1.1\r\n" + HEAD + CLOSE, 404),
    "tunnel": (b"CONNECT x:443 HTTP/1.1\r\n" + HEAD + CLOSE, 404),
    "unknown method": (b"FLY /v1/models HTTP/1.1\r\n" + HEAD + CLOSE, 405),
    "method in small letters": (b"get /v1/models HTTP/1.1\r\n" + HEAD + CLOSE, 405),
    "path with an encoded NUL": (b"GET /v1/models/%00 HTTP/1.1\r\n" + HEAD + CLOSE, 404),
    "path of no UTF-8": (b"GET /%ff%fe HTTP/1.1\r\n" + HEAD + CLOSE, 404),
    "encoded line end in the path": (b"GET /%0d%0aX:1 HTTP/1.1\r\n" + HEAD + CLOSE, 404),
    "websocket": (
        GET.replace(b"models", b"chat/completions")
        + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        405,
    ),
    "HTTP/1.0": (b"GET /" + CANARY + b" HTTP/1.0\r\n" + HEAD + b"\r\n", 404),
    "multipart": (
        POST
        + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 3\r\n"
        + CLOSE
        + b"--x",
        400,
    ),
    "gzip": (
        POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n" + CLOSE + b"\x1f\x8b",
        400,
    ),
    "no body": (POST + CLOSE, 400),
    "trailers": (
        CHUNKED.replace(b"\r\n\r\n", b"\r\n" + CLOSE) + b"0\r\nX-A: " + CANARY + b"\r\n\r\n",
        400,
    ),
    "no key": (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + CLOSE, 401),
    "a key in a folded line": (
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: y\r\n Authorization: Bearer "
        + KEY
        + b"\r\n"
        + CLOSE,
        401,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_requests_that_we_do_not_serve_are_4xx(server: Running, name: str) -> None:
    data, status = REFUSED[name]
    answers = answers_to(server, data)
    assert statuses(answers) == [status]
    assert CANARY not in answers


@pytest.mark.parametrize("headers", [b"", b"Host: x\r\n"])
def test_http_1_0_is_served(server: Running, headers: bytes) -> None:
    answers = answers_to(server, b"GET /health HTTP/1.0\r\n" + headers + b"\r\n")
    assert statuses(answers) == [200]


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    missing = GET.replace(b"models", b"nothing")
    answers = answers_to(server, GET + b"\r\n" + missing + b"\r\n" + GET + CLOSE)
    assert statuses(answers) == [200, 404, 200]


def test_what_follows_a_malformed_request_is_not_served(server: Running) -> None:
    answers = answers_to(server, GET + b"\r\n" + b"BAD\r\n\r\n" + GET + CLOSE)
    assert statuses(answers) == [200, 400]


def test_a_body_that_ends_early_is_closed_without_an_answer(server: Running) -> None:
    with connect(server) as sock:
        sock.sendall(POST + b"Content-Length: 100\r\n\r\n{")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_a_body_longer_than_said_is_the_next_request_and_malformed(server: Running) -> None:
    answers = answers_to(server, POST + b"Content-Length: 1\r\n\r\n{" + CANARY + b"\r\n\r\n")
    assert statuses(answers) == [400, 400]
    assert CANARY not in answers


def head_of(line_bytes: int) -> bytes:
    """A head whose method and target have so many bytes."""
    return b"GET /" + b"x" * (line_bytes - 4) + b" HTTP/1.1\r\n" + HEAD + CLOSE


@pytest.mark.parametrize(("past", "status"), [(0, 404), (1, 414)])
def test_the_request_line_has_a_limit(server: Running, past: int, status: int) -> None:
    assert statuses(answers_to(server, head_of(middleware.MAX_LINE_BYTES + past))) == [status]


@pytest.mark.parametrize(("past", "status"), [(0, 200), (1, 431)])
def test_the_number_of_headers_has_a_limit(server: Running, past: int, status: int) -> None:
    more = b"X: 1\r\n" * (middleware.MAX_HEADERS - 3 + past)  # host, authorization, connection
    assert statuses(answers_to(server, GET + more + CLOSE)) == [status]


@pytest.mark.parametrize(("past", "status"), [(0, 200), (1, 431)])
def test_the_size_of_all_headers_has_a_limit(server: Running, past: int, status: int) -> None:
    own = sum(len(line) - 2 for line in (HEAD + CLOSE).split(b"\r\n") if line)  # without ": "
    room = middleware.MAX_HEADER_BYTES - own - len(b"X") + past
    with connect(server) as sock:  # all at once: only what is incomplete has h11's own limit
        sock.sendall(GET + b"X: " + b"1" * room + b"\r\n" + CLOSE)
        answers = b"".join(iter(lambda: sock.recv(65536), b""))
    assert statuses(answers) == [status]


@pytest.mark.parametrize(("past", "status"), [(0, 400), (1, 400)])
def test_the_number_of_chunks_has_a_limit(server: Running, past: int, status: int) -> None:
    chunks = b"1\r\n{\r\n" * (connections.MAX_CHUNKS + past)
    answers = answers_to(
        server, CHUNKED.replace(b"\r\n\r\n", b"\r\n" + CLOSE) + chunks + b"0\r\n\r\n"
    )
    assert statuses(answers) == [status]
    assert (b"malformed_request" in answers) is bool(past)
