"""Everything needs a key but what is listed, however it is spelled, and no key is told."""

from __future__ import annotations

import hmac
import signal
import socket
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from server import cli
from server.api_keys import ApiKeys, BadKeys, key_digest
from server.app import create_app
from server.settings import Access, Limits
from tests.server_harness import (
    Running,
    build_model_folder,
    eventually,
    paths_of,
    running_server,
)
from tests.server_process import serving

KEY, OTHER = "sk-falcon-one-1234", "sk-falcon-two-5678"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "X"]
OPEN = {"/livez", "/readyz", "/health", "/ping"}
SPELLINGS = [
    "//v1/models",
    "/v1//models",
    "/v1/models/",
    "/v1/models/..%2f..%2fhealth",
    "/v1/models/../../health",
    "/health/../v1/models",
    "/health%2f..%2fv1%2fmodels",
    "/health/",
    "/health%00",
    "/health;x",
    "/%68ealth/x",
    "/HEALTH",
    "/V1/models",
    "/%76%31/models",
    "/v1/models?path=/health",
    "/v1/models%3f/health",
    "/v1/models#/health",
    "/static/../v1/models",
    "/static/..%2fv1%2fmodels",
    "/static/%2e%2e/v1/models",
    "/static/a/b",
    "/static/",
    "/static",
    "/.",
    "/nothing",
    "http://x/health",
    "http://x/v1/models",
    "*",
    "x:443",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder, access=Access(ApiKeys([KEY, OTHER]))) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refused(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"] == "Bearer"
    error: dict[str, Any] = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    return error


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_any_of_the_keys_opens_the_server(server: Running, key: str) -> None:
    assert server.get("/v1/models", headers=bearer(key)).status_code == 200
    assert server.post(server.chat(), headers=bearer(key)).status_code == 200
    assert server.get("/v1/models", headers={"authorization": f"bEaReR  {key}"}).status_code == 200


def test_openais_client_sends_the_key_and_knows_a_wrong_one(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
        assert client.models.list().data[0].id == "tiny"
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="nope") as client,
        pytest.raises(openai.AuthenticationError) as failed,
    ):
        client.models.list()
    assert failed.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        KEY,
        "Bearer",
        f"Basic {KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY} {OTHER}",
        f"Bearer {KEY},{OTHER}",
        f"Bearer {key_digest(KEY)}",
        b"Bearer \xff\xfe",
    ],
)
def test_what_is_not_a_key_is_401_and_not_told(server: Running, authorization: str | bytes) -> None:
    answer = server.get("/v1/models", headers={"authorization": authorization})
    refused(answer)
    assert KEY[3:10] not in answer.text


def test_a_missing_key_and_a_wrong_one_are_told_apart(server: Running) -> None:
    missing = refused(server.get("/v1/models"))["message"]
    wrong = refused(server.get("/v1/models", headers=bearer("x")))["message"]
    assert "needs an API key" in missing
    assert "not one of" in wrong


def test_falcon_chat_sends_a_key(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", "--url", server.url, "hello"]
    assert cli.main(words) == 1
    assert "needs an API key" in capsys.readouterr().err
    assert cli.main([*words, "--api-key", KEY]) == 0
    monkeypatch.setenv("FALCON_API_KEY", OTHER)
    assert cli.main(words) == 0


def test_two_authorization_headers_are_none(server: Running) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {OTHER}")]
    refused(server.get("/v1/models", headers=headers))


def test_a_key_elsewhere_is_none(server: Running) -> None:
    refused(server.get("/v1/models", params={"api_key": KEY}, headers={"x-api-key": KEY}))


def test_the_body_of_a_request_without_a_key_is_not_looked_at(server: Running) -> None:
    refused(server.client.post("/v1/chat/completions", content=b"\xff{"))


def test_every_route_is_closed_but_the_ones_listed(folder: Path) -> None:
    nothing = SimpleNamespace(metrics=None)
    app = create_app(nothing, None, Limits(), Access(), None)  # type: ignore[arg-type]  # not run
    paths = paths_of(app.routes)
    assert {"/v1/chat/completions", "/metrics", "/version", "/health"} <= paths
    with running_server(folder, access=Access(ApiKeys([KEY]))) as server:
        for path, method in product(paths, METHODS):
            answer = server.client.request(
                method, path.replace("{name:path}", "tiny").replace("{name}", "page.css")
            )
            if path in OPEN | {"/"} or path.startswith("/static/"):
                assert answer.status_code != 401, (method, path)
            else:
                assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize("target", SPELLINGS)
def test_no_spelling_of_a_path_goes_round_the_key(server: Running, target: str) -> None:
    for method in METHODS:
        status, body = raw(server, method, target)
        assert status in (400, 401), (method, status)
        assert b'"tiny"' not in body


def raw(server: Running, method: str, target: str, host: str = "x") -> tuple[int, bytes]:
    """Status and body for a request line that no client library would send."""
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(head.encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    first, _, rest = answer.partition(b"\r\n")
    return int(first.split()[1]), rest.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("host", ["a/health?", "a/health#", "/health", "x/../health"])
def test_the_host_header_does_not_change_the_path(server: Running, host: str) -> None:
    assert raw(server, "GET", "/v1/models", host)[0] in (400, 401)


def test_metrics_are_open_only_where_the_operator_says_so(folder: Path, server: Running) -> None:
    refused(server.get("/metrics"))
    access = Access(ApiKeys([KEY]), open_metrics=True)
    with running_server(folder, access=access) as other:
        assert other.get("/metrics").status_code == 200
        refused(other.get("/metrics/"))
        refused(other.get("/v1/models"))


def test_all_keys_are_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    keys = ApiKeys([KEY, OTHER, "third"])
    for offered in (KEY, OTHER, "third", "", "wrong" * 100):
        compared.clear()
        assert keys.admit(offered) is (offered in (KEY, OTHER, "third"))
        assert compared == [(32, 32)] * 3


@pytest.mark.parametrize("key", ["", " ", "a b", "käse", "x" * 513, "a\n"])
def test_keys_that_no_header_carries_are_refused_and_not_told(key: str) -> None:
    with pytest.raises(BadKeys, match="visible ASCII") as refusal:
        ApiKeys([key])
    assert not key.strip() or key not in str(refusal.value)


def test_a_key_file_holds_a_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n  {OTHER}  \n")
    keys = ApiKeys(["given"], file)
    assert all(map(keys.admit, ["given", KEY, OTHER]))
    assert not keys.admit("# ours")
    file.write_text("# none\n")
    with pytest.raises(BadKeys, match="holds no key"):
        keys.reload()
    assert keys.admit(KEY)
    file.unlink()
    with pytest.raises(BadKeys, match="cannot be read"):
        ApiKeys([], file)


def test_the_key_file_is_read_again_on_sighup(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    words = ["--api-key-file", str(file), "--api-key", "sk-given-9876"]
    with serving(folder, *words) as served:
        ask = partial(served.get, "/v1/models")
        assert ask(headers=bearer(KEY)).status_code == 200
        assert b"sk-given" not in Path(f"/proc/{served.process.pid}/cmdline").read_bytes()
        file.write_text(OTHER)
        served.send_signal(signal.SIGHUP)
        eventually(lambda: ask(headers=bearer(OTHER)).status_code == 200)
        refused(ask(headers=bearer(KEY)))
        file.write_text("")
        served.send_signal(signal.SIGHUP)
        refused(ask(headers=bearer(KEY)))
        served.send_signal()
        status, _, err = served.ended()
    assert status == 0
    assert "stay as they were" in err
    assert KEY not in err
    assert OTHER not in err
