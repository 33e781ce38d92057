"""Every bad request gets its status and OpenAI's error object, and never its own input back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server_harness import (
    CONTEXT,
    Running,
    build_model_folder,
    eventually,
    running_server,
)

CANARY = "canary7f3a"
BODY = '{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], %s}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder) as running:
        yield running


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert CANARY not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    return error


def messages(*contents: object, role: str = "user") -> list[dict[str, object]]:
    return [{"role": role, "content": content} for content in contents]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": CANARY}, "messages"),
        ({"messages": messages(*["x"] * 513)}, "messages"),
        ({"messages": messages("x", role=CANARY)}, "messages.0.role"),
        ({"messages": messages("x", role="tool")}, "messages.0.tool_call_id"),
        ({"messages": messages("x", 7)}, "messages.1.content"),
        ({"messages": messages(None)}, "messages.0.content"),
        ({"messages": messages([{"type": "image_url", "url": CANARY}])}, "messages.0.content"),
        ({"messages": messages([])}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
            "messages.0.tool_calls.0",
        ),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        (
            {"stream": True, "stream_options": {"include_usage": CANARY}},
            "stream_options.include_usage",
        ),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": CANARY}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.0}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "2"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "2"}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"stop": [3]}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"frequency_penalty": CANARY}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 2.01}, "repetition_penalty"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {CANARY: 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0663": 1}}, "logit_bias"),
        ({"logit_bias": {"5": CANARY}}, "logit_bias"),
        ({"logit_bias": {"5": True}}, "logit_bias"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias"),
        ({"logit_bias": {"320": 1}}, "logit_bias"),
        ({"logit_bias": {"9999999999": 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"min_tokens": CONTEXT}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [5, CANARY]}, "stop_token_ids.1"),
        ({"stop_token_ids": [320]}, "stop_token_ids"),
        ({"stop_token_ids": [5] * 129}, "stop_token_ids"),
        ({"speculative": False}, "speculative"),
        ({"speculative": {"enabled": 0}}, "speculative.enabled"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [1]}, "functions"),
        ({"prediction": {"type": "content"}}, "prediction.content"),
        ({"audio": {}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"store": True}, "store"),
        ({"min_tokens": False}, "min_tokens"),
        ({"chat_template": CANARY}, "chat_template"),
    ],
)
def test_bad_parameters_are_400_and_named(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    error = error_of(server.post(server.chat(CANARY) | fields), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'"text"', None),
        (b"null", None),
        (b"\xff\xfe{}", None),
        (b'{"model": "\xff"}', None),
        (b"[" * 100_000, None),
        ((BODY % '"x": 1, "x": 2').encode(), None),
        ((BODY % ('"x": ' + "1" * 5000)).encode(), None),
        ((BODY % ('"x": ' + "[" * 33 + "]" * 33)).encode(), None),
        ((BODY % '"temperature": NaN').encode(), "temperature"),
        ((BODY % '"temperature": -Infinity').encode(), "temperature"),
        ((BODY % '"temperature": 1e999').encode(), "temperature"),
        ((BODY % ('"seed": ' + "9" * 40)).encode(), "seed"),
        ((BODY % '"stop": ["\\ud800"]').encode(), "stop.0"),
        ((BODY % '"\\ud800": 1').encode(), None),
        ((BODY % '"logit_bias": {"a b": NaN}').encode(), None),
    ],
)
def test_bad_json_is_400(server: Running, body: bytes, param: str | None) -> None:
    answer = server.client.post("/v1/chat/completions", content=body)
    error = error_of(answer, 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_a_missing_model_and_an_unknown_model_differ(server: Running) -> None:
    body = server.chat()
    del body["model"]
    assert error_of(server.post(body), 400)["param"] == "model"
    error = error_of(server.post(server.chat() | {"model": CANARY}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": messages("漢" * (CONTEXT - 10))},
        {"messages": messages("x" * (8 * CONTEXT + 1))},
        {"max_tokens": CONTEXT},
        {"max_completion_tokens": 2**31 - 1},
    ],
)
def test_too_long_is_openais_context_length_exceeded(
    server: Running, fields: dict[str, Any]
) -> None:
    error = error_of(server.post(server.chat() | fields), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert error["message"].startswith(f"This model's maximum context length is {CONTEXT} tokens.")


def test_the_whole_context_may_be_used_and_not_one_token_more(server: Running) -> None:
    body = server.chat({"say": "hello", "forever": True, "step": 50})
    usage = server.post(body).json()["usage"]
    assert usage["total_tokens"] == CONTEXT
    exact = usage["completion_tokens"]
    assert server.post(body | {"max_tokens": exact}).status_code == 200
    assert server.post(body | {"max_tokens": exact + 1}).status_code == 400


def test_what_the_template_refuses_is_400(server: Running) -> None:
    error = error_of(server.post(server.chat("refuse me")), 400)
    assert error["param"] == "messages"
    assert error["message"].endswith("Not that.")


def test_unknown_routes_and_methods_are_json(server: Running) -> None:
    error_of(server.get(f"/{CANARY}"), 404)
    error_of(server.client.post("/v1/chat/completions/", json={}), 404)
    answer = server.get("/v1/chat/completions")
    error_of(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_body_over_the_limit_is_413_and_the_limit_itself_is_not(server: Running) -> None:
    limit = 1024 * 1024
    url = "/v1/chat/completions"
    error_of(server.client.post(url, content=b" " * (limit + 1)), 413)
    error_of(server.client.post(url, content=b" " * limit), 400)
    chunks = iter([b" " * limit, b" "])
    error_of(server.client.post(url, content=chunks), 413)


def test_too_many_headers_are_431(server: Running) -> None:
    headers = [(f"x-h{number}", "1") for number in range(101)]
    error_of(server.get("/health", headers=headers), 431)


def test_a_bug_is_a_500_without_the_prompt_in_answer_or_log(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"could not handle {CANARY}")

    monkeypatch.setattr("server.submits._token_budget", fail)
    answer = server.post(server.chat(CANARY), headers={"x-request-id": "abc"})
    error = error_of(answer, 500)
    assert error["code"] == "internal_error"
    assert answer.headers["x-request-id"] == "abc"
    error_id = error["message"].split()[-1].rstrip(".")
    assert f"error {error_id}: RuntimeError" in caplog.text
    assert CANARY not in caplog.text


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    with running_server(folder) as server:
        assert "no chat template" in error_of(server.post(server.chat()), 400)["message"]
        eventually(lambda: server.get("/health").status_code == 200)
