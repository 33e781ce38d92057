"""The front of several replicas: what it passes on, tries again, ends, and never does twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api_keys import ApiKeys
from server.exchange import Exchange, GivenBack, Taken, answers
from server.exposition import merged
from server.front import ATTEMPTS, Entrance, Item, ReplicaLost, create_front
from server.request_body import MAX_BODY_BYTES
from server.settings import Access, Limits

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
STREAM = (200, b"text/event-stream", [b'data: {"n":1}\n\n', b"data: [DONE]\n\n"])
WHOLE = (200, b"application/json", [b"{}"])
LOST = "lost"
GIVEN_BACK = "given back"
SILENT = "silent"

Answer = tuple[int, bytes, list[bytes]]


class FakeReplicas:
    """Each request is answered by the next of the plans; the first answer may lose its end."""

    def __init__(self, *plans: Answer | str, loses_after: int | None = None) -> None:
        self.asked: list[Exchange] = []
        self.closed = 0
        self._plans = list(plans)
        self._loses_after = loses_after

    async def ask(self, exchange: Exchange) -> AsyncGenerator[Item, None]:
        self.asked.append(exchange)
        plan = self._plans.pop(0)
        try:
            if plan == SILENT:
                await asyncio.sleep(60)
            name = f"r{len(self.asked)}"
            yield Taken(name)
            if plan == LOST:
                raise ReplicaLost
            if plan == GIVEN_BACK:
                yield GivenBack()
            if not isinstance(plan, str):
                for message in self._messages(plan):
                    yield message
        finally:
            self.closed += 1

    def _messages(self, plan: Answer) -> Any:
        status, kind, bodies = plan
        headers = [(b"content-type", kind), (b"x-request-id", b"ours")]
        yield {"type": "http.response.start", "status": status, "headers": headers}
        for number, body in enumerate(bodies):
            if number == self._loses_after and len(self.asked) == 1:
                raise ReplicaLost
            is_last = number == len(bodies) - 1
            yield {"type": "http.response.body", "body": body, "more_body": not is_last}
        if self._loses_after == len(bodies):
            raise ReplicaLost

    async def expositions(self) -> Mapping[str, bytes]:
        return {"a": b"# HELP up Up.\nup 1.0\n", "b": b"# HELP up Up.\nup 2.0\n"}


def front(replicas: FakeReplicas, **access: Any) -> Entrance:
    made = create_front(replicas, Access(**access, trusts_host=True), Limits(queue_timeout=0.05))
    assert isinstance(made, Entrance)
    return made


async def ask(
    replicas: FakeReplicas, path: str = "/v1/chat/completions", **options: Any
) -> httpx.Response:
    access = options.pop("access", {})
    transport = httpx.ASGITransport(front(replicas, **access))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, json=CHAT, **options)


async def test_an_answer_is_passed_on_with_its_replicas_name() -> None:
    replicas = FakeReplicas(STREAM)
    answer = await ask(replicas, headers={"authorization": "Bearer k"})
    assert (answer.status_code, answer.text) == (200, 'data: {"n":1}\n\ndata: [DONE]\n\n')
    assert answer.headers["x-falcon-replica"] == "r1"
    assert "x-request-id" not in answer.headers
    [exchange] = replicas.asked
    assert json.loads(exchange.body) == CHAT
    assert (b"authorization", b"Bearer k") in exchange.scope["headers"]
    assert exchange.key


@pytest.mark.parametrize("trouble", [LOST, GIVEN_BACK])
async def test_a_request_without_a_first_byte_goes_to_another_replica(trouble: str) -> None:
    replicas = FakeReplicas(trouble, WHOLE)
    answer = await ask(replicas)
    assert (answer.status_code, answer.text) == (200, "{}")
    assert [exchange.shunned for exchange in replicas.asked] == [set(), {"r1"}]


async def test_a_head_alone_is_no_first_byte() -> None:
    replicas = FakeReplicas(STREAM, WHOLE, loses_after=0)
    answer = await ask(replicas)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["x-falcon-replica"] == "r2"


@pytest.mark.parametrize("trouble", [LOST, GIVEN_BACK])
async def test_a_request_that_loses_every_replica_is_refused_in_the_end(trouble: str) -> None:
    replicas = FakeReplicas(*[trouble] * ATTEMPTS)
    answer = await ask(replicas)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
    assert int(answer.headers["retry-after"]) > 0
    assert len(replicas.asked) == replicas.closed == ATTEMPTS


async def test_a_begun_stream_ends_with_one_error_event_and_is_not_begun_again() -> None:
    replicas = FakeReplicas(STREAM, loses_after=1)
    answer = await ask(replicas)
    first, error, done = answer.text.removesuffix("\n\n").split("\n\n")
    assert (first, done) == ('data: {"n":1}', "data: [DONE]")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert len(replicas.asked) == 1


async def test_a_begun_stream_of_responses_ends_in_their_words() -> None:
    bodies = [b'event: a\ndata: {"sequence_number":6,"x":1}\n\n', b"never"]
    replicas = FakeReplicas((200, b"text/event-stream", bodies), loses_after=1)
    answer = await ask(replicas, "/v1/responses")
    _, error = answer.text.removesuffix("\n\n").split("\n\n")
    name, data = error.split("\n")
    event = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert (event["code"], event["sequence_number"]) == ("replica_lost", 7)
    assert event["error"]["code"] == "replica_lost"


async def test_other_begun_answers_stay_without_their_end() -> None:
    sent: list[Message] = []
    replicas = FakeReplicas((200, b"application/json", [b"[1,", b"2]"]), loses_after=1)

    async def send(message: Message) -> None:
        sent.append(message)

    await front(replicas)(scope_of(), body_of(b"{}"), send)
    assert [message.get("body") for message in sent] == [None, b"[1,"]
    assert sent[-1]["more_body"] is True


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/readyz"])
async def test_nobody_waits_for_a_replica_for_ever(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.front.PROBE_SECONDS", 0.05)
    replicas = FakeReplicas(SILENT)
    answer = await ask(replicas, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
    assert replicas.closed == 1


@pytest.mark.parametrize("plan", [WHOLE, STREAM])
async def test_a_replica_that_dies_behind_its_last_byte_has_answered(plan: Answer) -> None:
    replicas = FakeReplicas(plan, loses_after=len(plan[2]))
    answer = await ask(replicas)
    assert (answer.status_code, answer.content) == (200, b"".join(plan[2]))
    assert len(replicas.asked) == 1


async def test_who_may_not_ask_reaches_no_replica() -> None:
    replicas = FakeReplicas(WHOLE)
    access = {"keys": ApiKeys(["k"])}
    assert (await ask(replicas, access=access)).status_code == 401
    assert replicas.asked == []
    key = {"authorization": "Bearer k"}
    assert (await ask(replicas, access=access, headers=key)).status_code == 200


async def test_a_body_that_is_too_long_reaches_no_replica() -> None:
    replicas = FakeReplicas()
    answer = await ask(replicas, headers={"x": "y" * 40_000})
    assert answer.status_code == 431
    transport = httpx.ASGITransport(front(replicas))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/v1/completions", content=b"x" * (MAX_BODY_BYTES + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_metrics_are_those_of_all_replicas() -> None:
    transport = httpx.ASGITransport(front(FakeReplicas()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/metrics")
    lines = ["# HELP up Up.", 'up{replica="a"} 1.0', 'up{replica="b"} 2.0']
    assert answer.text.splitlines() == lines


def test_every_family_of_metrics_is_in_one_piece() -> None:
    text = b'# HELP a A.\n# TYPE a counter\na{x="1 {"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    assert merged({"r": text, "s": text}).decode().splitlines() == [
        "# HELP a A.",
        "# TYPE a counter",
        'a{replica="r",x="1 {"} 1.0',
        'a{replica="s",x="1 {"} 1.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{replica="r"} 2.0',
        'b{replica="s"} 2.0',
    ]


async def test_there_is_a_life_span_and_no_websocket() -> None:
    sent: list[str] = []
    calls = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Message:
        return {"type": next(calls)}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    entrance = front(FakeReplicas())
    await entrance({"type": "lifespan"}, receive, send)
    await entrance({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


async def test_closing_an_answer_is_the_clients_leaving() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        seen.append(await receive())

    messages = answers(app, Exchange(scope_of(), b"body"))
    assert (await anext(messages))["status"] == 200
    await messages.aclose()
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]
    assert seen[0]["body"] == b"body"


async def test_what_fails_in_the_application_fails_its_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        [message async for message in answers(app, Exchange(scope_of(), b""))]


def scope_of() -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [],
    }


def body_of(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
