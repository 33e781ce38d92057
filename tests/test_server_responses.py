"""Responses on a real socket: OpenAI's clients, the order and schema of events, failures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.response_schema import kinds, streamed, whole
from tests.server_harness import Running, build_model_folder, eventually, running_server

SAY = {"say": "hello world, é漢 and the hills", "step": 3}
TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
LOGPROBS = "message.output_text.logprobs"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server_harness.WORKER", Path(__file__).with_name("telling_worker.py"))
        folder = build_model_folder(tmp_path_factory.mktemp("model"))
        with running_server(folder, model_len=1024) as running:
            yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(content: object = "hi", **fields: Any) -> dict[str, Any]:
    """A request body; a dict as content is an order to the fake worker."""
    text = json.dumps(content) if isinstance(content, dict) else content
    return {"model": "tiny", "input": text} | fields


def anonymous(response: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two answers to the same request."""
    items = [{**item, "id": item["id"][:3]} for item in response["output"]]
    return response | {"id": "", "created_at": 0, "completed_at": 0, "output": items}


def test_openai_client_gets_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model="tiny", input="hi", temperature=0.5, store=False)
    assert (response.output_text, response.status) == ("echo:hi", "completed")
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


async def test_openai_async_client_gets_a_response_and_a_stream(server: Running) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        response = await client.responses.create(model="tiny", input="hi")
        assert response.output_text == "echo:hi"
        stream = await client.responses.create(model="tiny", input="hi", stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.completed"
        async with client.responses.stream(model="tiny", input="hi") as helper:
            assert (await helper.get_final_response()).output_text == "echo:hi"


def test_openais_stream_helper_accepts_the_order_of_events(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input=json.dumps(SAY)) as stream:
        snapshots = [e.snapshot for e in stream if e.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == snapshots[-1] == SAY["say"]
    assert len(snapshots) > 2


def test_events_come_in_openais_order_and_number_and_the_pieces_join(server: Running) -> None:
    events = streamed(server, ask(SAY))
    assert kinds(events) == [*TEXT_EVENTS, "response.completed"]
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    done = {event["type"]: event for event in events}
    assert "".join(deltas) == done["response.output_text.done"]["text"] == SAY["say"]
    item = done["response.output_item.done"]["item"]
    assert done["response.content_part.done"]["part"] == item["content"][0]
    assert {e["item_id"] for e in events if "item_id" in e} == {item["id"]}
    assert done["response.completed"]["response"]["output"] == [item]
    started = [done[f"response.{name}"]["response"] for name in ("created", "in_progress")]
    assert [r["status"] for r in started] == ["in_progress"] * 2
    assert [r["output"] for r in started] == [[], []]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "completed"),
        ({"max_output_tokens": 5}, "incomplete"),
        ({"stop": "the"}, "completed"),
        ({"include": [LOGPROBS], "top_logprobs": 2}, "completed"),
        ({"instructions": "Be brief.", "seed": 7, "metadata": {"a": "b"}}, "completed"),
    ],
)
def test_the_last_event_carries_the_whole_response(
    server: Running, fields: dict[str, Any], status: str
) -> None:
    body = ask(SAY, **fields)
    last = streamed(server, body)[-1]
    assert last["type"] == f"response.{status}"
    assert anonymous(last["response"]) == anonymous(whole(server, body))


def test_a_response_cut_at_max_output_tokens_is_incomplete(server: Running) -> None:
    response = whole(server, ask(SAY, max_output_tokens=4))
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 4
    text = response["output"][0]["content"][0]["text"]
    assert text
    assert str(SAY["say"]).startswith(text)


def test_an_answer_of_nothing_is_an_empty_message(server: Running) -> None:
    response = whole(server, ask({"say": ""}))
    assert response["output"][0]["content"][0]["text"] == ""
    events = streamed(server, ask({"say": ""}))
    assert "response.output_text.delta" not in kinds(events)
    assert kinds(events)[-4:] == [*TEXT_EVENTS[-3:], "response.completed"]


def test_the_request_is_echoed_with_the_defaults_that_were_applied(server: Running) -> None:
    plain = whole(server, ask())
    assert plain["id"].startswith("resp_")
    assert plain["output"][0]["id"].startswith("msg_")
    defaults = {
        "temperature": 1.0,
        "top_p": 1.0,
        "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "parallel_tool_calls": True,
        "service_tier": "default",
        "metadata": {},
        "top_logprobs": 0,
        "background": False,
        "store": False,
        "reasoning": {"effort": None, "summary": None},
    }
    assert {name: plain[name] for name in defaults} == defaults
    nulls = {
        *("error", "incomplete_details", "instructions", "max_output_tokens", "max_tool_calls"),
        "previous_response_id",
    }
    assert {name for name, value in plain.items() if value is None} == nulls
    assert {"prompt_cache_key", "safety_identifier", "user"}.isdisjoint(plain)
    own = {
        "instructions": "Be brief.",
        "max_output_tokens": 50,
        "max_tool_calls": 3,
        "metadata": {"run": "7"},
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "temperature": 0.0,
        "top_p": 0.5,
        "top_logprobs": 1,
        "user": "u",
    }
    echoed = whole(server, ask(**own, include=[LOGPROBS], store=True))
    assert {name: echoed[name] for name in own} == own
    assert echoed["store"] is False


def test_logprobs_are_chats_in_the_text_and_in_its_events(server: Running) -> None:
    chat = server.post(server.chat(SAY, logprobs=True, top_logprobs=2)).json()["choices"][0]
    expected = chat["logprobs"]["content"]
    body = ask(SAY, include=[LOGPROBS], top_logprobs=2)
    part = whole(server, body)["output"][0]["content"][0]
    for own, entry in zip(part["logprobs"], expected, strict=True):
        assert own["bytes"] == (entry["bytes"] or [])
        assert (own["token"], own["logprob"]) == (entry["token"], entry["logprob"])
        assert [o["logprob"] for o in own["top_logprobs"]] == [entry["logprob"]] * 2
    events = streamed(server, body)
    told = [e["logprobs"] for e in events if e["type"] == "response.output_text.delta"]
    tokens = [entry["token"] for entries in told for entry in entries]
    assert tokens == [entry["token"] for entry in expected[:-1]], "the end token has no text"
    (done,) = [e for e in events if e["type"] == "response.output_text.done"]
    assert [entry["token"] for entry in done["logprobs"]] == [e["token"] for e in expected]


def test_logprobs_are_left_out_unless_included(server: Running) -> None:
    assert whole(server, ask(SAY))["output"][0]["content"][0]["logprobs"] == []


def test_extensions_reach_the_engine_as_in_chat(server: Running) -> None:
    def told(name: str, **fields: Any) -> Any:
        text = whole(server, ask({"tell": name}, **fields))["output"][0]["content"][0]["text"]
        return json.loads(text)

    assert told("seed", seed=5) == 5
    assert told("top_k", top_k=9) == 9
    assert told("min_p", min_p=0.25) == 0.25
    assert told("max_tokens", max_output_tokens=77) == 77
    assert told("speculative", speculative={"enabled": False}) is False
    assert told("logit_bias", logit_bias={"3": 2}) == {"3": 2.0}


def test_figures_of_speculation_are_for_who_asks(server: Running) -> None:
    keys = {"metrics", "timings"}
    body = ask(SAY, speculative={"stats": True})
    response = whole(server, body)
    assert response["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 0
    assert response["timings"]["predicted_n"] == response["usage"]["output_tokens"]
    *earlier, last = streamed(server, body)
    assert last["response"]["metrics"] == response["metrics"]
    assert not keys & set(earlier[0]["response"])
    assert not keys & set(whole(server, ask(SAY)))


def test_history_is_the_prompt_that_chat_makes_of_it(
    server: Running, client: openai.OpenAI
) -> None:
    """Answers go back as they came, with all their fields."""
    question = {"role": "user", "content": "hello"}
    first = client.responses.create(model="tiny", input=[question], instructions="Be brief.")
    order = {"role": "user", "content": json.dumps({"tell": "prompt_ids"})}
    history: list[Any] = [question, *first.output, order]
    second = client.responses.create(model="tiny", input=history, instructions="Be brief.")
    messages = [
        {"role": "system", "content": "Be brief."},
        question,
        {"role": "assistant", "content": "echo:hello"},
        order,
    ]
    chat = server.post({"model": "tiny", "messages": messages}).json()
    assert second.output_text == chat["choices"][0]["message"]["content"]
    assert len(json.loads(second.output_text)) > 10


def test_a_failure_in_mid_stream_is_an_error_and_a_failed_response(
    server: Running, client: openai.OpenAI
) -> None:
    body = ask({"say": "hello world", "step": 1, "error_after": 3})
    events = streamed(server, body)
    assert kinds(events) == [*TEXT_EVENTS[:5], "error", "response.failed"]
    error, failed = events[-2], events[-1]["response"]
    assert (error["code"], error["param"]) == ("generation_failed", None)
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "server_error", "message": error["message"]}
    (item,) = failed["output"]
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", text)
    with (
        client.responses.create(model="tiny", input=body["input"], stream=True) as stream,
        pytest.raises(openai.APIError, match="engine failed"),
    ):
        list(stream)


def test_a_failure_of_a_whole_response_keeps_its_status(server: Running) -> None:
    body = ask({"say": "hello", "error_after": 1})
    answer = server.client.post("/v1/responses", json=body)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"


def test_a_client_that_leaves_frees_the_engine(server: Running) -> None:
    aborts = server.received("Abort")
    body = ask({"say": "hello ", "forever": True, "delay": 0.01}, stream=True)
    with server.client.stream("POST", "/v1/responses", json=body) as stream:
        next(stream.iter_lines())
    eventually(lambda: server.received("Abort") == aborts + 1)
