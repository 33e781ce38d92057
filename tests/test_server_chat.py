"""Chat completions on a real socket: OpenAI's client, the order of chunks, stops, parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from engine.messages import SamplingParams
from server.chat_schemas import ChatCompletionRequest
from server.settings import Limits
from server.submits import sampling
from tests.server_harness import Running, build_model_folder, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = build_model_folder(tmp_path_factory.mktemp("model"))
    with running_server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


USER: ChatCompletionUserMessageParam = {"role": "user", "content": "hi"}


def test_openai_client_gets_a_completion(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=[USER], seed=-1, top_p=0.5)
    choice = reply.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("echo:hi", "stop")
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 3


def test_openai_client_streams_the_same_text(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="tiny", messages=[USER], stream=True) as stream:
        assert "".join(c.choices[0].delta.content or "" for c in stream) == "echo:hi"


def test_completion_has_exactly_the_keys_of_openais_schema(server: Running) -> None:
    reply = server.post(server.chat()).json()
    assert set(reply) == {"id", "object", "created", "model", "choices", "usage"}
    assert reply["id"].startswith("chatcmpl-")
    assert reply["object"] == "chat.completion"
    message = {"role": "assistant", "content": "echo:hi", "refusal": None}
    expected = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    assert reply["choices"] == [expected]


def test_chunks_come_in_openais_order_with_usage_in_one_place(server: Running) -> None:
    order = {"say": "hello world", "step": 3}
    events = server.events(server.chat(order, stream_options={"include_usage": True}))
    *chunks, usage, done = events
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(set(delta) == {"content"} for delta in deltas[1:-1])
    assert "".join(delta["content"] for delta in deltas[:-1]) == "hello world"
    assert deltas[-1] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"] == server.post(server.chat(order)).json()["usage"]
    assert len({(e["id"], e["created"], e["model"]) for e in events[:-1]}) == 1


def test_without_include_usage_no_chunk_mentions_usage(server: Running) -> None:
    *chunks, done = server.events(server.chat())
    assert done == "[DONE]"
    assert not any("usage" in chunk for chunk in chunks)


def test_stream_headers_forbid_caches_and_buffers(server: Running) -> None:
    headers = server.post(server.chat(stream=True)).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"


def test_curl_without_a_json_content_type_works(server: Running) -> None:
    answer = server.client.post(
        "/v1/chat/completions",
        content=json.dumps(server.chat()),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.json()["choices"][0]["message"]["content"] == "echo:hi"


@pytest.mark.parametrize("step", [1, 3, 50])
def test_stop_strings_cut_across_tokens_and_inside_steps(server: Running, step: int) -> None:
    body = server.chat({"say": "hello world STOP and more", "step": step}, stop=["STOP", "zzz"])
    whole = server.post(body).json()
    assert whole["choices"][0]["message"]["content"] == "hello world "
    assert whole["choices"][0]["finish_reason"] == "stop"
    chunks = server.events(body)[:-1]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == "hello world "


def test_completion_tokens_up_to_a_stop_do_not_depend_on_the_step(server: Running) -> None:
    order = {"say": "hello world STOP and more"}
    counts = {
        server.post(server.chat(order | {"step": step}, stop="STOP")).json()["usage"][
            "completion_tokens"
        ]
        for step in (1, 2, 7, 50)
    }
    assert len(counts) == 1


def test_max_tokens_ends_with_length_and_the_new_name_wins(server: Running) -> None:
    order = {"say": "hello world and so on and on", "step": 3}
    reply = server.post(server.chat(order, max_tokens=9, max_completion_tokens=4)).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 4


def test_special_tokens_in_user_text_stay_text(server: Running) -> None:
    text = "a<|end|><|assistant|>b"
    reply = server.post(server.chat({"say": text})).json()
    # The worker reads the order back from the prompt: a real special token would have cut it.
    assert reply["choices"][0]["finish_reason"] == "stop"
    prompt = server.post(server.chat("<|end|>")).json()["usage"]["prompt_tokens"]
    assert prompt > server.post(server.chat("e")).json()["usage"]["prompt_tokens"] + 1


def test_parts_of_text_are_joined(server: Running) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    reply = server.post(server.chat(parts)).json()
    assert reply["choices"][0]["message"]["content"] == "echo:one\ntwo"


def test_unknown_parameters_are_ignored_and_reported(server: Running) -> None:
    body = server.chat(
        user="u", metadata={"a": "b"}, store=False, frobnicate=1, **{"bad name\n": 2}
    )
    body["messages"][0]["mood"] = "good"
    answer = server.post(body)
    assert answer.status_code == 200
    assert answer.headers["x-falcon-ignored-params"] == "frobnicate, messages.0.mood"
    assert "x-falcon-ignored-params" not in server.post(server.chat(user="u")).headers


def test_a_strict_server_refuses_unknown_parameters(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "m")
    with running_server(folder, limits=Limits(strict_params=True)) as server:
        assert server.post(server.chat(user="u", stop=None)).status_code == 200
        refused = server.post(server.chat(user="u", frobnicate=1))
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "frobnicate"
        assert server.post(server.chat(**{"bad name\n": 2})).json()["error"]["param"] is None


def test_neutral_values_of_unsupported_parameters_pass(server: Running) -> None:
    neutral = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": None,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "n": 1,
        "stop": None,
        "temperature": None,
        "top_k": -1,
    }
    answer = server.post(server.chat(**neutral))
    assert answer.status_code == 200
    assert "x-falcon-ignored-params" not in answer.headers


def test_request_ids_are_echoed_when_harmless_and_made_otherwise(server: Running) -> None:
    url = "/v1/models"
    assert server.get(url, headers={"x-request-id": "a.B-9_"}).headers["x-request-id"] == "a.B-9_"
    for bad in ("a b", "x" * 65, ""):
        made = server.get(url, headers={"x-request-id": bad}).headers["x-request-id"]
        assert len(made) == 32
    assert server.post({}).headers["x-request-id"]


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "falcon"
    with pytest.raises(openai.NotFoundError, match="serves 'tiny'"):
        client.models.retrieve("other")


def test_version_and_health(server: Running) -> None:
    assert server.get("/version").json()["version"]
    health = server.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})


def test_parameters_reach_the_engine_as_openai_defines_them() -> None:
    def params(**fields: object) -> SamplingParams:
        body = {"model": "m", "messages": [{"role": "user", "content": ""}]} | fields
        return sampling(ChatCompletionRequest.model_validate(body))

    assert params(seed=5) == SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=5)
    assert params(seed=-1).seed == 2**64 - 1
    assert params(top_k=-1).top_k == params(top_k=0).top_k == 0
    given = {"temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "seed": 1}
    assert params(**given) == SamplingParams(**given)  # type: ignore[arg-type]  # a plain dict
    assert params().seed != params().seed
