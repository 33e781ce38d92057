"""Several choices, log-probabilities, and what reaches the engine, on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from engine.seeds import choice_seed
from tests.server_harness import Running, build_model_folder, eventually, running_server

END = 1  # the model's end-of-sequence id
SAY = {"say": "hello world, é漢 and the hills", "step": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server_harness.WORKER", Path(__file__).with_name("telling_worker.py"))
        folder = build_model_folder(tmp_path_factory.mktemp("model"))
        with running_server(folder) as running:
            yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def told(server: Running, name: str, **fields: Any) -> Any:
    """The value of a field of the `Submit` that these parameters became."""
    reply = server.post(server.chat({"tell": name}, **fields)).json()
    return json.loads(reply["choices"][0]["message"]["content"])


def streamed(server: Running, body: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What the chunks of a stream join to, by choice: text, entries, finish reason."""
    *chunks, done = server.events(body)
    assert done == "[DONE]"
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            own = found.setdefault(choice["index"], {"text": "", "entries": [], "end": None})
            assert own["end"] is None, "nothing follows a choice's last chunk"
            own["text"] += choice["delta"].get("content", "")
            own["entries"] += (choice["logprobs"] or {"content": []})["content"]
            own["end"] = choice["finish_reason"]
    return found


def whole(server: Running, body: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The same of a plain reply."""
    return {
        choice["index"]: {
            "text": choice["message"]["content"],
            "entries": (choice["logprobs"] or {"content": []})["content"],
            "end": choice["finish_reason"],
        }
        for choice in server.post(body).json()["choices"]
    }


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({}, "logprobs", None),
        ({"logprobs": False, "top_logprobs": 0}, "logprobs", None),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 20}, "logprobs", 20),
        ({"frequency_penalty": -2}, "frequency_penalty", -2.0),
        ({"presence_penalty": 1.5}, "presence_penalty", 1.5),
        ({"repetition_penalty": 2}, "repetition_penalty", 2.0),
        ({"repetition_penalty": None}, "repetition_penalty", 1.0),
        ({"logit_bias": {"0": -100, "261": 0.5}}, "logit_bias", {"0": -100.0, "261": 0.5}),
        ({"logit_bias": None}, "logit_bias", {}),
        ({"min_tokens": 3}, "min_tokens", 3),
        ({}, "stop_token_ids", [END]),
        ({"stop_token_ids": [9, 5, 9]}, "stop_token_ids", [END, 5, 9]),
        ({"ignore_eos": False}, "stop_token_ids", [END]),
        ({"ignore_eos": True, "max_tokens": 3, "stop_token_ids": [5]}, "stop_token_ids", [5]),
        ({}, "speculative", True),
        ({"speculative": {}}, "speculative", True),
        ({"speculative": {"enabled": None}}, "speculative", True),
        ({"speculative": {"enabled": True}}, "speculative", True),
        ({"speculative": {"enabled": False}}, "speculative", False),
        ({"seed": 7}, "seed", 7),
    ],
)
def test_parameters_reach_the_engine(
    server: Running, fields: dict[str, Any], name: str, value: object
) -> None:
    assert told(server, name, **fields) == value


def test_unknown_options_of_speculation_are_reported(server: Running) -> None:
    answer = server.post(server.chat(speculative={"enabled": True, "tree": 3}))
    assert answer.headers["x-falcon-ignored-params"] == "speculative.tree"


def test_ignored_end_ids_are_no_text_and_end_nothing(server: Running) -> None:
    order = {"say": "hello", "forever": True, "step": 2}
    reply = server.post(server.chat(order, ignore_eos=True, max_tokens=20)).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize("step", [1, 2, 50])
def test_stop_token_ids_end_the_answer_and_are_not_shown(server: Running, step: int) -> None:
    entries = whole(server, server.chat(SAY, logprobs=True))[0]["entries"]
    number = next(i for i, entry in enumerate(entries) if "," in entry["token"])
    stop = -round(64 * entries[number]["logprob"])
    body = server.chat(SAY | {"step": step}, stop_token_ids=[stop], logprobs=True)
    reply = server.post(body).json()
    assert reply["choices"][0]["message"]["content"] == "hello world"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == number + 1
    assert streamed(server, body) == whole(server, body)


@pytest.mark.parametrize("step", [1, 3, 50])
@pytest.mark.parametrize("min_tokens", [0, 4, 30])
def test_stop_strings_before_min_tokens_do_not_count(
    server: Running, step: int, min_tokens: int
) -> None:
    """One token a letter: the first "a" is the second token, the next one the sixth."""
    body = server.chat({"say": "zazzzazz", "step": step}, stop="a", min_tokens=min_tokens)
    expected = {0: "z", 4: "zazzz", 30: "zazzzazz"}[min_tokens]
    assert whole(server, body)[0]["text"] == streamed(server, body)[0]["text"] == expected


@pytest.mark.parametrize("step", [1, 2, 5, 50])
@pytest.mark.parametrize("stop", [None, "hills", "漢 a", "zz"])
@pytest.mark.parametrize("max_tokens", [None, 9, 14])
def test_entries_are_the_completions_tokens_streamed_or_not(
    server: Running, step: int, stop: str | None, max_tokens: int | None
) -> None:
    body = server.chat(
        SAY | {"step": step}, stop=stop, max_tokens=max_tokens, logprobs=True, top_logprobs=2
    )
    reply = server.post(body).json()
    (choice,) = whole(server, body).values()
    assert streamed(server, body) == {0: choice}
    assert len(choice["entries"]) == reply["usage"]["completion_tokens"]
    joined = b"".join(bytes(e["bytes"]) for e in choice["entries"] if e["token"] != "<|end|>")
    text = choice["text"].encode()
    assert joined.decode(errors="replace").encode().startswith(text)
    if choice["end"] == "stop" and stop != "hills" and stop != "漢 a":
        assert joined == text
        assert choice["entries"][-1]["token"] == "<|end|>"


@pytest.mark.parametrize("step", [1, 3])
def test_entries_come_with_the_chunk_that_completes_their_text(server: Running, step: int) -> None:
    body = server.chat(SAY | {"step": step}, stop="hello there", logprobs=True)
    text, sent = "", b""
    for chunk in server.events(body)[:-1]:
        (choice,) = chunk["choices"]
        text += choice["delta"].get("content", "")
        for entry in (choice["logprobs"] or {"content": []})["content"]:
            sent += bytes(entry["bytes"]) if entry["token"] != "<|end|>" else b""
        assert text.encode().startswith(sent), "no entry comes before its text"
    assert text.encode() == sent


def test_an_entry_has_openais_shape_and_exact_bytes(server: Running) -> None:
    body = server.chat({"say": "漢"}, logprobs=True, top_logprobs=2)
    reply = server.post(body).json()
    logprobs = reply["choices"][0]["logprobs"]
    assert set(logprobs) == {"content", "refusal"}
    first, *_, end = logprobs["content"]
    assert set(first) == {"token", "logprob", "bytes", "top_logprobs"}
    assert first["bytes"] == list("漢".encode()[: len(first["bytes"])])
    assert [set(other) for other in first["top_logprobs"]] == 2 * [{"token", "logprob", "bytes"}]
    assert (end["token"], end["logprob"]) == ("<|end|>", -END / 64)


def test_seeded_choices_equal_single_requests_with_the_derived_seeds(server: Running) -> None:
    order = {"tell": "seed"}
    seeds = [choice_seed(11, index) for index in range(3)]
    body = server.chat(order, seed=11, n=3)
    assert [int(own["text"]) for own in whole(server, body).values()] == seeds
    for seed in seeds:
        signed = seed - 2**64 if seed >= 2**63 else seed
        assert told(server, "seed", seed=signed) == seed
    assert streamed(server, body) == whole(server, body)


def test_choices_without_a_seed_differ(server: Running) -> None:
    texts = [own["text"] for own in whole(server, server.chat({"tell": "seed"}, n=8)).values()]
    assert len(set(texts)) == 8


def test_usage_counts_the_prompt_once_and_all_choices_tokens(server: Running) -> None:
    one = server.post(server.chat(SAY)).json()["usage"]
    body = server.chat(SAY, n=3, stream_options={"include_usage": True})
    *_, last, done = server.events(body)
    assert done == "[DONE]"
    assert last["choices"] == []
    usage = last["usage"]
    assert usage["prompt_tokens"] == one["prompt_tokens"]
    assert usage["completion_tokens"] == 3 * one["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert server.post(server.chat(SAY, n=3)).json()["usage"] == usage


def test_metrics_count_what_usage_counts(server: Running) -> None:
    def counted() -> list[float]:
        lines = server.get("/metrics").text.splitlines()
        names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
        return [
            float(line.split()[-1]) for name in names for line in lines if line.startswith(name)
        ]

    before = counted()
    usage = server.post(server.chat(SAY, n=3)).json()["usage"]
    gained = [after - old for after, old in zip(counted(), before, strict=True) if after != old]
    assert gained == [usage["prompt_tokens"], usage["completion_tokens"]]


def test_choices_of_a_stream_interleave_and_each_has_openais_order(server: Running) -> None:
    order = SAY | {"step": 1, "delay": 0.002}
    chunks = server.events(server.chat(order, n=2))[:-1]
    indexes = [chunk["choices"][0]["index"] for chunk in chunks]
    assert indexes[:2] == [0, 1]
    assert indexes != sorted(indexes)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert all(set(choice["delta"]) == {"content"} for choice in own[1:-1])
        assert own[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_every_choice(server: Running, stream: bool) -> None:
    aborts = server.received("Abort")
    body = server.chat({"say": "hello", "forever": True, "delay": 0.01}, stream=stream, n=3)
    server.leave(body, choices=3)
    eventually(lambda: server.received("Abort") == aborts + 3)


def test_one_choice_that_fails_ends_all(server: Running) -> None:
    body = server.chat({"say": "hello world", "step": 1, "error_after": 2}, n=3)
    answer = server.post(body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "generation_failed")
    *_, error, done = server.events(body)
    assert error["error"]["code"] == "generation_failed"
    assert done == "[DONE]"
    assert server.post(server.chat(SAY)).status_code == 200


USER: ChatCompletionUserMessageParam = {"role": "user", "content": json.dumps(SAY)}


def test_openais_client_reads_choices_and_log_probabilities(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=[USER], n=2, logprobs=True, top_logprobs=1, logit_bias={"5": -1}
    )
    assert [choice.message.content for choice in reply.choices] == 2 * [SAY["say"]]
    for choice in reply.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        words = [e for e in choice.logprobs.content if e.token != "<|end|>"]
        assert b"".join(bytes(e.bytes or []) for e in words).decode() == SAY["say"]
        assert all(len(e.top_logprobs) == 1 for e in words)


def test_openais_client_streams_choices_and_log_probabilities(client: openai.OpenAI) -> None:
    texts, entries = {0: "", 1: ""}, {0: 0, 1: 0}
    with client.chat.completions.create(
        model="tiny", messages=[USER], n=2, logprobs=True, stream=True
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                if choice.logprobs is not None and choice.logprobs.content is not None:
                    entries[choice.index] += len(choice.logprobs.content)
    assert texts == {0: SAY["say"], 1: SAY["say"]}
    assert entries[0] == entries[1] > 0
