"""Every limit of a request body: what is just within it is served, one more is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import chat_messages, parameters, prompt_schemas, request_body, submits
from tests.server_harness import CONTEXT, Running, build_model_folder, running_server

Fields = dict[str, Any]

BOUNDS: dict[str, tuple[int, Callable[[int], Fields]]] = {
    "messages": (
        prompt_schemas.MAX_MESSAGES,
        lambda n: {"messages": [{"role": "user", "content": ""}] * n},
    ),
    "messages.0.content": (
        chat_messages.MAX_CONTENT_PARTS,
        lambda n: {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * n}]},
    ),
    "stop": (parameters.MAX_STOPS, lambda n: {"stop": ["~"] * n}),
    "stop characters": (parameters.MAX_STOP_CHARS, lambda n: {"stop": "~" * n}),
    "n": (parameters.MAX_CHOICES, lambda n: {"n": n}),
    "top_logprobs": (
        parameters.MAX_TOP_LOGPROBS,
        lambda n: {"logprobs": True, "top_logprobs": n},
    ),
    "stop_token_ids": (parameters.MAX_STOP_TOKENS, lambda n: {"stop_token_ids": [7] * n}),
    "logit_bias value": (parameters.MAX_BIAS, lambda n: {"logit_bias": {"7": n}}),
    "temperature": (2, lambda n: {"temperature": n}),
    "top_p": (1, lambda n: {"top_p": n}),
    "min_p": (1, lambda n: {"min_p": n}),
    "frequency_penalty": (2, lambda n: {"frequency_penalty": n}),
    "presence_penalty": (2, lambda n: {"presence_penalty": n}),
    "repetition_penalty": (2, lambda n: {"repetition_penalty": n}),
    "top_k": (parameters.INT32_MAX, lambda n: {"top_k": n}),
    "seed": (2**63 - 1, lambda n: {"seed": n}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = build_model_folder(tmp_path_factory.mktemp("model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server_harness.WORKER", Path(__file__).with_name("telling_worker.py"))
        with running_server(folder, model_len=6 * CONTEXT) as running:
            yield running


def refused(answer: httpx.Response, param: str | None) -> str:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    message: str = error["message"]
    return message


@pytest.mark.parametrize("name", BOUNDS)
def test_the_limit_is_served_and_one_more_is_400(server: Running, name: str) -> None:
    limit, fields = BOUNDS[name]
    assert server.post(server.chat() | fields(limit)).status_code == 200
    refused(server.post(server.chat() | fields(limit + 1)), name.split()[0])


def test_the_number_of_biases_has_a_limit(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        parameters, "MAX_BIASES", 200
    )  # there are not more tokens than the real one
    biases = {str(token): 0.5 for token in range(200)}
    assert server.post(server.chat(logit_bias=biases)).status_code == 200
    refused(server.post(server.chat(logit_bias=biases | {"200": 1})), "logit_bias")


def test_the_size_of_a_body_has_a_limit(server: Running) -> None:
    body = json.dumps(server.chat()).encode()
    url, padding = "/v1/chat/completions", b" " * (request_body.MAX_BODY_BYTES - len(body))
    assert server.client.post(url, content=body + padding).status_code == 200
    answer = server.client.post(url, content=body + padding + b" ")
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_the_depth_of_a_body_has_a_limit(server: Running) -> None:
    def nested(levels: int) -> Fields:
        """The body itself is the first level, the number in the innermost list the last."""
        return server.chat(x=json.loads("[" * (levels - 2) + "1" + "]" * (levels - 2)))

    assert server.post(nested(request_body.MAX_DEPTH)).status_code == 200
    assert "deeper" in refused(server.post(nested(request_body.MAX_DEPTH + 1)), None)


@pytest.mark.parametrize(("number", "is_fine"), [(2**64 - 1, True), (2**64, False)])
def test_the_size_of_an_integer_has_a_limit(server: Running, number: int, is_fine: bool) -> None:
    answer = server.post(server.chat(x=number))
    assert answer.status_code == (200 if is_fine else 400)


def test_the_characters_of_a_prompt_have_a_limit(server: Running) -> None:
    limit = submits.CHARS_PER_TOKEN_CAP * 6 * CONTEXT
    room = limit - len("role" + "user" + "content")
    within = refused(server.post(server.chat("~" * room)), "messages")
    assert "resulted in" in within
    past = refused(server.post(server.chat("~" * (room + 1))), "messages")
    assert f"the length of your messages is over {limit} characters" in past
