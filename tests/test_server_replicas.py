"""Replicas on Ray Serve, for real: two of them, killed under load, emptied, watched.

Skipped where Ray is not installed: `make replicas` installs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_chat import save_chat_target

from benchmarks.own_server import own_server
from tests.ray_process import START_SECONDS, Cluster, running_cluster
from tests.server_harness import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make replicas"),
]
KEY = {"authorization": "Bearer secret"}
WORDS = ["the quick fox", "a lazy dog", "so it goes", "over the hills", "far away", "once more"]
FLAGS = {"served-model-name": "tiny", "dtype": "float32", "threads": 1, "max-num-seqs": 2}
LONG = {"max_tokens": 200, "ignore_eos": True}


def body(number: int, **fields: Any) -> dict[str, Any]:
    content = f"{WORDS[number % len(WORDS)]} {'abcdefgh'[number // len(WORDS)]}"
    messages = [{"role": "user", "content": content}]
    return {"model": "tiny", "messages": messages, "seed": number, "max_tokens": 24} | fields


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_target(tmp_path_factory.mktemp("models") / "tiny", context=512)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    arguments = FLAGS | {"model": str(folder), "api-key": "secret", "replicas": "2"}
    with running_cluster(arguments) as cluster:
        cluster.client.headers.update(KEY)
        yield cluster


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[httpx.Client]:
    """The same model behind `falcon serve`."""
    words = [str(word) for name, value in FLAGS.items() for word in (f"--{name}", value)]
    with own_server(str(folder), *words) as (url, _), httpx.Client(base_url=url) as client:
        yield client


def chat(cluster: Cluster, body: dict[str, Any]) -> httpx.Response:
    return cluster.client.post("/v1/chat/completions", json=body)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def events_of(stream: str) -> list[Any]:
    """Payloads, without the comments that keep a stream open."""
    lines = [line.removeprefix("data: ") for line in stream.split("\n\n") if line.startswith("d")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def streamed_text(events: list[Any]) -> str:
    choices = [choice for event in events[:-1] for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def sample(cluster: Cluster, name: str, label: str = "") -> float:
    """The sum over all replicas."""
    lines = cluster.client.get("/metrics").text.splitlines()
    lines = [line for line in lines if line.startswith(name) and label in line]
    assert lines, name
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def two_are_back(cluster: Cluster) -> bool:
    """Two replicas that answer, each with an engine."""
    ready = sample(cluster, "falcon:ready")
    return ready == 2 == len(cluster.actors()) == len(cluster.engines())


def test_answers_are_those_of_one_server(cluster: Cluster, alone: httpx.Client) -> None:
    replicas = set()
    for number in range(2 * len(WORDS)):
        answer = chat(cluster, body(number))
        replicas.add(answer.headers["x-falcon-replica"])
        expected = text_of(alone.post("/chat/completions", json=body(number)))
        assert text_of(answer) == expected
        stream = events_of(chat(cluster, body(number, stream=True)).text)
        assert stream[-1] == "[DONE]"
        assert streamed_text(stream) == expected
    assert len(replicas) == 2


def test_a_second_turn_finds_the_first_in_its_replicas_cache(cluster: Cluster) -> None:
    for number in range(len(WORDS)):
        first = chat(cluster, asked := body(number))
        said = {"role": "assistant", "content": text_of(first)}
        turn = [*asked["messages"], said, {"role": "user", "content": "go on"}]
        second = chat(cluster, asked | {"messages": turn})
        assert second.headers["x-falcon-replica"] == first.headers["x-falcon-replica"]
        assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 10


def test_who_has_no_key_and_what_is_refused(cluster: Cluster) -> None:
    assert httpx.post(cluster.url + "/v1/chat/completions", json=body(0)).status_code == 401
    assert httpx.get(cluster.url + "/metrics").status_code == 401
    for path in ("/livez", "/readyz"):
        assert httpx.get(cluster.url + path).status_code == 200
    answer = chat(cluster, body(0, temperature=9))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "temperature")
    assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
    answer = cluster.client.post("/v1/chat/completions", content=b"x" * 2**21)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_openai_clients_see_no_difference(cluster: Cluster) -> None:
    import openai

    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="secret", max_retries=0) as client:
        asked = {key: value for key, value in body(3).items() if key != "model"}
        whole = client.chat.completions.create(model="tiny", **asked)
        stream = client.chat.completions.create(model="tiny", stream=True, **asked)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert said == whole.choices[0].message.content
        options: dict[str, Any] = {"max_output_tokens": 16, "extra_body": {"ignore_eos": True}}
        response = client.responses.create(model="tiny", input="hello", **options)
        assert response.usage is not None
        assert response.usage.output_tokens == 16


def test_a_client_that_leaves_ends_its_request(cluster: Cluster) -> None:
    def aborts() -> float:
        return sample(cluster, "vllm:request_success_total", 'finished_reason="abort"')

    before = aborts()
    order = body(0, stream=True, **LONG)
    with cluster.client.stream("POST", "/v1/chat/completions", json=order) as stream:
        next(stream.iter_text())
    eventually(lambda: aborts() == before + 1, 10)
    eventually(lambda: sample(cluster, "vllm:num_requests_running") == 0, 10)


class Streamed:
    """One stream, read in a thread of its own."""

    def __init__(self, cluster: Cluster, order: dict[str, Any]) -> None:
        self.order = order
        self.text = ""
        self._cluster = cluster
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self._cluster.client.stream(
            "POST", "/v1/chat/completions", json=self.order | {"stream": True}
        ) as answer:
            for text in answer.iter_text():
                self.text += text

    def events(self) -> list[Any]:
        self._thread.join(START_SECONDS)
        return events_of(self.text)


def test_a_dead_engine_does_not_show(cluster: Cluster, alone: httpx.Client) -> None:
    orders = [body(number, **LONG) for number in range(8)]
    streams = [Streamed(cluster, order) for order in orders]
    eventually(lambda: sum(bool(stream.text) for stream in streams) >= 3, 30)
    os.kill(max(cluster.engines()), signal.SIGKILL)
    for order, stream in zip(orders, streams, strict=True):
        expected = text_of(alone.post("/chat/completions", json=order, timeout=60))
        events = stream.events()
        assert (events[-1], streamed_text(events)) == ("[DONE]", expected)
    assert sample(cluster, "falcon:engine_restarts_total") == 1
    assert sample(cluster, "falcon:requests_replayed_total") >= 1
    eventually(lambda: two_are_back(cluster), START_SECONDS)


def test_a_replica_whose_engine_is_given_up_is_replaced_and_no_request_fails(
    cluster: Cluster,
) -> None:
    doomed = max(cluster.actors())
    is_over = threading.Event()

    def ask_on(number: int) -> set[int]:
        statuses = set()
        while not is_over.is_set():
            statuses.add(chat(cluster, body(number, **LONG)).status_code)
        return statuses

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask_on, number) for number in range(6)]
        try:
            eventually(lambda: not_there_once_its_engines_are_killed(cluster, doomed), 120)
            eventually(lambda: two_are_back(cluster), START_SECONDS)
        finally:
            is_over.set()
    assert set.union(*(each.result() for each in asking)) == {200}


def not_there_once_its_engines_are_killed(cluster: Cluster, actor: int) -> bool:
    for pid in cluster.engines():
        with contextlib.suppress(OSError):
            if cluster.parent(pid) == actor:
                os.kill(pid, signal.SIGKILL)
    return actor not in cluster.actors()


def test_a_killed_replica_loses_only_what_had_begun(cluster: Cluster, alone: httpx.Client) -> None:
    orders = [body(number, **LONG) for number in range(16)]
    streams = [Streamed(cluster, order) for order in orders]
    eventually(lambda: sum(bool(stream.text) for stream in streams) >= 4, 30)
    os.kill(max(cluster.actors()), signal.SIGKILL)
    began = [bool(stream.text) for stream in streams]
    found = [stream.events() for stream in streams]
    outcomes: Counter[str] = Counter()
    for order, had_begun, events in zip(orders, began, found, strict=True):
        assert events[-1] == "[DONE]", events
        errors = [event["error"] for event in events[:-1] if "error" in event]
        if errors:
            assert [error["code"] for error in errors] == ["replica_lost"]
            assert "error" in events[-2]
            assert len(events) > 2, "lost before its first byte"
            outcomes["lost"] += 1
        else:
            expected = text_of(alone.post("/chat/completions", json=order, timeout=60))
            assert streamed_text(events) == expected
            outcomes["begun" if had_begun else "waiting"] += 1
    assert 1 <= outcomes["lost"] <= 4, outcomes  # its two, and two that had just ended there
    assert outcomes["waiting"] >= 8, outcomes
    eventually(lambda: two_are_back(cluster), START_SECONDS)
    assert text_of(chat(cluster, body(0)))


def test_it_ends_with_its_last_answer_and_leaves_nothing(cluster: Cluster) -> None:
    stream = Streamed(cluster, body(1, **LONG))
    eventually(lambda: bool(stream.text), 20)
    cluster.delete()
    events = stream.events()
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    eventually(lambda: not cluster.actors() and not cluster.engines(), START_SECONDS)
    assert cluster.client.get("/readyz").status_code == 404
    cluster.stop()
    eventually(lambda: not cluster.left(), START_SECONDS)
