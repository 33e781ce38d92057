"""Requests that do not run their course: disconnects, failures, silence, crowds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.server_harness import Running, build_model_folder, eventually, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_server(build_model_folder(tmp_path_factory.mktemp("model"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_stream_whose_client_leaves_is_aborted(server: Running) -> None:
    aborts = server.received("Abort")
    body = server.chat({"say": "hello", "forever": True, "delay": 0.01}, stream=True)
    url = "/v1/chat/completions"
    with server.client.stream("POST", url, json=body) as answer:
        next(answer.iter_bytes())
    eventually(lambda: server.received("Abort") == aborts + 1)


def test_a_plain_request_whose_client_leaves_is_aborted(server: Running) -> None:
    aborts = server.received("Abort")
    server.leave(server.chat({"say": "hello", "forever": True, "delay": 0.01}))
    eventually(lambda: server.received("Abort") == aborts + 1)


def test_an_engine_error_is_a_500_or_an_event_in_the_stream(server: Running) -> None:
    body = server.chat({"say": "hello world", "step": 1, "error_after": 2})
    answer = server.post(body)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"
    *_, error, done = server.events(body)
    assert error["error"]["code"] == "generation_failed"
    assert done == "[DONE]"


def test_a_silent_stream_is_kept_alive_by_comments(
    server: Running, monkeypatch: pytest.MonkeyPatch, client: openai.OpenAI
) -> None:
    monkeypatch.setattr("server.answering.PING_SECONDS", 0.05)
    order = json.dumps({"say": "hello", "delay": 0.3})
    body = server.chat(order, stream=True)
    assert ": ping\n\n" in server.post(body).text
    with client.chat.completions.create(**body) as stream:
        assert "".join(c.choices[0].delta.content or "" for c in stream) == "hello"


def test_a_bug_in_the_middle_of_a_stream_is_an_error_event(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("secret")

    monkeypatch.setattr("server.detokenizer.Detokenizer.finish", fail)
    _, first, *_, error, done = server.events(server.chat({"say": "hello world", "step": 1}))
    assert first["choices"][0]["delta"]["content"]
    assert error["error"]["code"] == "internal_error"
    assert "secret" not in str(error)
    assert done == "[DONE]"


def test_many_requests_at_once_each_get_their_own_answer(server: Running) -> None:
    def ask(number: int) -> str:
        body = server.chat({"say": f"I am {number}", "step": 1}, stream=number % 2 == 0)
        answer = server.post(body)
        if number % 2:
            return str(answer.json()["choices"][0]["message"]["content"])
        chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if "{" in line]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == [f"I am {number}" for number in range(12)]
