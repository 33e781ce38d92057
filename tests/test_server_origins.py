"""Other pages' scripts cannot use the server unless the operator allows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.api_keys import ApiKeys
from server.settings import Access
from tests.server_harness import Running, build_model_folder, running_server

PAGE = "https://chat.example.com"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Running]:
    access = Access(ApiKeys(["k"]), allowed_origins=(PAGE,), trusts_host=True)
    with running_server(folder, access=access) as running:
        yield running


def ask(server: Running, origin: str, host: str | None = None) -> httpx.Response:
    headers = {"origin": origin, "authorization": "Bearer k"}
    return server.post(server.chat(), headers=headers | ({"host": host} if host else {}))


@pytest.mark.parametrize(
    "origin", [PAGE, "null", "", "http://", "http://127.0.0.1", "http://localhost:1", "127.0.0.1"]
)
def test_foreign_pages_are_refused(server: Running, origin: str) -> None:
    answer = ask(server, origin)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_the_servers_own_page_is_let_in(server: Running, name: str) -> None:
    host = f"{name}:{server.port}"
    assert ask(server, f"http://{host}", host).status_code == 200
    assert ask(server, f"https://{host}", host).status_code == 200


def test_a_foreign_name_for_this_address_is_not_ours_without_a_key(
    server: Running, shared: Running
) -> None:
    host = f"rebound.example.com:{server.port}"
    assert ask(server, f"http://{host}", host).status_code == 403
    assert ask(shared, f"http://{host}", host).status_code == 200


def test_a_page_that_is_allowed_may_ask_and_read(shared: Running) -> None:
    answer = ask(shared, PAGE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert ask(shared, "https://evil.example.com").status_code == 403


def test_preflight_requests_need_no_key_and_no_more_is_open(shared: Running) -> None:
    wish = {"access-control-request-method": "POST"}
    wish["access-control-request-headers"] = "authorization, content-type"
    url = "/v1/chat/completions"
    answer = shared.client.options(url, headers=wish | {"origin": PAGE})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert shared.client.options(url, headers={"origin": PAGE}).status_code == 401
    foreign = shared.client.options(url, headers=wish | {"origin": "https://evil.example.com"})
    assert foreign.status_code == 400
    assert "access-control-allow-origin" not in foreign.headers


def test_errors_can_be_read_by_allowed_pages(shared: Running) -> None:
    answer = shared.get("/v1/models", headers={"origin": PAGE})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_any_page_may_be_allowed(folder: Path) -> None:
    with running_server(folder, access=Access(allowed_origins=("*",))) as server:
        assert ask(server, PAGE).headers["access-control-allow-origin"] == "*"
        assert ask(server, "null").status_code == 200


def test_cors_is_off_by_default(server: Running) -> None:
    answer = server.get("/v1/models")
    assert not [name for name in answer.headers if name.startswith("access-control")]
