"""Predictions, figures and traces over HTTP: what is asked for is told, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.messages import RequestOutput
from server.figures import Figures, Tally, metrics, timings, total
from tests.server_harness import CONTEXT, Running, build_model_folder, running_server

SAY = {"say": "hello world, é漢 and the hills", "step": 3}
STATS = {"speculative": {"stats": True}}
TRACE = {"speculative": {"trace": True}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server_harness.WORKER", Path(__file__).with_name("telling_worker.py"))
        folder = build_model_folder(tmp_path_factory.mktemp("model"))
        with running_server(folder) as running:
            yield running


def predicted(content: Any) -> dict[str, Any]:
    return {"prediction": {"type": "content", "content": content}}


def details(reply: dict[str, Any]) -> tuple[int, int]:
    """Accepted and rejected tokens of the prediction."""
    own = reply["usage"]["completion_tokens_details"]
    return own["accepted_prediction_tokens"], own["rejected_prediction_tokens"]


def reply(server: Running, order: object = SAY, **fields: Any) -> dict[str, Any]:
    answer = server.post(server.chat(order, **fields))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def told(server: Running, name: str, **fields: Any) -> Any:
    """The value of a field of the `Submit` that these parameters became."""
    return json.loads(reply(server, {"tell": name}, **fields)["choices"][0]["message"]["content"])


def test_usage_tells_of_a_prediction_where_there_is_one(server: Running) -> None:
    without, with_one = reply(server), reply(server, **predicted("hello"))
    assert without["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    tokens = with_one["usage"]["completion_tokens"]
    steps = -(-tokens // 3)
    assert details(with_one) == (tokens - steps, 4 * steps - (tokens - steps))
    assert tokens == without["usage"]["completion_tokens"]
    assert details(reply(server, **predicted(""))) == (0, 0)


def test_usage_of_a_stream_tells_the_same(server: Running) -> None:
    usage = {"stream_options": {"include_usage": True}}
    *_, last, done = server.events(server.chat(SAY, **predicted("hello"), **usage))
    assert done == "[DONE]"
    assert last["usage"] == reply(server, **predicted("hello"))["usage"]


def test_predicted_tokens_behind_a_stop_string_are_not_accepted(server: Running) -> None:
    """One step gives the whole answer: what is accepted ends with the token that stops it."""
    order = SAY | {"step": 100}
    stopped = reply(server, order, stop=["world"], **predicted("hello"))
    accepted, _ = details(stopped)
    assert accepted == stopped["usage"]["completion_tokens"]
    assert accepted < details(reply(server, order, **predicted("hello")))[0]


def test_every_choice_is_predicted_and_the_sum_is_told(server: Running) -> None:
    one, two = reply(server, **predicted("hello")), reply(server, n=2, **predicted("hello"))
    assert details(two) == tuple(2 * count for count in details(one))


@pytest.mark.parametrize("content", ["a<|end|>b", [{"type": "text", "text": "a<|end|>b"}]])
def test_special_tokens_in_a_prediction_are_plain_text(server: Running, content: Any) -> None:
    ids = told(server, "prediction_ids", **predicted(content))
    assert len(ids) > 3
    assert 1 not in ids


def test_parts_of_a_prediction_are_joined_by_line_breaks(server: Running) -> None:
    parts = [{"type": "text", "text": text} for text in ("hello", "world")]
    ids = told(server, "prediction_ids", **predicted(parts))
    assert ids == told(server, "prediction_ids", **predicted("hello\nworld"))
    assert told(server, "prediction_ids") == []


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ({"type": "content"}, "prediction.content"),
        ({"content": "a"}, "prediction.type"),
        ({"type": "text", "content": "a"}, "prediction.type"),
        ({"type": "content", "content": 3}, "prediction.content"),
        ({"type": "content", "content": None}, "prediction.content"),
        ({"type": "content", "content": []}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image", "text": "a"}]}, "prediction.content"),
        ("hello", "prediction"),
        ({"type": "content", "content": "é漢" * CONTEXT}, "prediction"),
        ({"type": "content", "content": "a" * (8 * CONTEXT + 1)}, "prediction"),
    ],
)
def test_a_prediction_that_makes_no_sense_is_refused(
    server: Running, prediction: object, param: str
) -> None:
    answer = server.post(server.chat("hi", prediction=prediction))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_unknown_fields_of_a_prediction_are_reported(server: Running) -> None:
    body = server.chat("hi", prediction={"type": "content", "content": "a", "weight": 2})
    assert server.post(body).headers["x-falcon-ignored-params"] == "prediction.weight"


def test_figures_are_told_to_who_asks_in_the_words_of_vllm_and_llama(server: Running) -> None:
    found = reply(server, **STATS)
    tokens = found["usage"]["completion_tokens"]
    steps = -(-tokens // 3)
    own = found["metrics"]["speculative_decoding"]
    assert own["num_spec_steps"] == sum(own["acceptance_histogram"]) == steps
    accepted = sum(count * number for count, number in enumerate(own["acceptance_histogram"]))
    assert own["num_accepted_draft_tokens"] == accepted == tokens - steps
    assert (own["num_draft_tokens"], own["num_spec_tokens"]) == (4 * steps, 4)
    assert own["mean_acceptance_length"] == pytest.approx(tokens / steps)
    assert own["draft_acceptance_rate"] == pytest.approx(accepted / (4 * steps))
    times = found["timings"]
    assert (times["draft_n"], times["draft_n_accepted"]) == (4 * steps, accepted)
    assert times["prompt_n"] + times["cache_n"] == found["usage"]["prompt_tokens"]
    assert times["predicted_n"] == tokens
    assert times["prompt_ms"] > 0
    assert times["predicted_per_second"] == pytest.approx(1e3 * tokens / times["predicted_ms"])


def test_who_does_not_ask_is_told_nothing(server: Running) -> None:
    assert set(reply(server)) == {"id", "object", "created", "model", "choices", "usage"}
    for chunk in server.events(server.chat(SAY))[:-1]:
        assert set(chunk) == {"id", "object", "created", "model", "choices"}


@pytest.mark.parametrize("wants_usage", [True, False])
def test_the_last_chunk_of_a_stream_has_the_figures(server: Running, wants_usage: bool) -> None:
    body = server.chat(SAY, stream_options={"include_usage": wants_usage}, **STATS)
    *chunks, last, _ = server.events(body)
    assert last["choices"] == []
    assert ("usage" in last) == wants_usage
    assert last["metrics"] == reply(server, **STATS)["metrics"]
    assert last["timings"]["draft_n_accepted"] > 0
    assert not any({"metrics", "timings"} & set(chunk) for chunk in chunks)


def test_timings_come_with_every_chunk_of_content_if_wanted(server: Running) -> None:
    *chunks, _ = server.events(server.chat(SAY, timings_per_token=True))
    counts = [chunk["timings"]["predicted_n"] for chunk in chunks if "timings" in chunk]
    assert len(counts) > 3
    assert counts == sorted(counts)
    assert counts[-1] == reply(server)["usage"]["completion_tokens"]
    assert reply(server, timings_per_token=True)["timings"]["predicted_n"] == counts[-1]


def traces(events: list[Any]) -> list[dict[str, Any]]:
    return [event["falcon"] for event in events[:-1] if "falcon" in event]


def text_of(events: list[Any], index: int = 0) -> str:
    choices = [choice for event in events[:-1] for choice in event["choices"]]
    return "".join(c["delta"].get("content", "") for c in choices if c["index"] == index)


@pytest.mark.parametrize("step", [1, 2, 3, 50])
def test_every_step_is_traced_in_order(server: Running, step: int) -> None:
    """Also steps whose text waits for the rest of a character."""
    events = server.events(server.chat(SAY | {"step": step}, **TRACE))
    found = traces(events)
    tokens = [token for trace in found for token in trace["tokens"]]
    count = reply(server)["usage"]["completion_tokens"]
    assert len(found) == -(-count // step)
    assert len(tokens) == count
    assert tokens[-1]["text"] == "<|end|>"
    texts = "".join(token["text"] for token in tokens[:-1])
    assert texts.replace("\ufffd", "") == SAY["say"].replace("é", "").replace("漢", "")
    assert texts.count("\ufffd") == len("é漢".encode())
    assert text_of(events) == SAY["say"]


def test_a_trace_shows_the_tree_in_texts(server: Running) -> None:
    trace = traces(server.events(server.chat(SAY, **TRACE)))[1]
    assert set(trace) == {
        "index",
        "tokens",
        "tree",
        "provisional",
        "passes",
        "draft_ms",
        "verify_ms",
    }
    tree = trace["tree"]
    assert len(tree["tokens"]) == len(tree["parents"]) == 5
    assert tree["parents"][0] == -1
    on_path = [tree["tokens"][node] for node in tree["path"]]
    assert on_path == [token["text"] for token in trace["tokens"]][: len(on_path)]
    assert [token["source"] for token in trace["tokens"]] == ["drafted", "drafted", "bonus"]


def test_no_step_is_lost_while_text_is_held_back_for_a_stop_string(server: Running) -> None:
    order = {"say": "hello world", "step": 1}
    stops = ["hello worlds", "hello world!"]
    events = server.events(server.chat(order, stop=stops, **TRACE))
    count = reply(server, order)["usage"]["completion_tokens"]
    assert len(traces(events)) == count
    assert text_of(events) == "hello world"
    assert [len(event["choices"]) for event in events[1:-2]] == [0] * (count - 1) + [1]


def test_tokens_behind_a_stop_string_are_not_traced(server: Running) -> None:
    order, stop = SAY | {"step": 100}, ["world"]
    (trace,) = traces(server.events(server.chat(order, stop=stop, **TRACE)))
    usage = reply(server, order, stop=stop)["usage"]
    assert len(trace["tokens"]) == usage["completion_tokens"]


def test_traces_of_several_choices_are_told_apart(server: Running) -> None:
    found = traces(server.events(server.chat(SAY, n=2, **TRACE)))
    count = reply(server)["usage"]["completion_tokens"]
    for index in (0, 1):
        own = [trace for trace in found if trace["index"] == index]
        assert sum(len(trace["tokens"]) for trace in own) == count


def test_text_completions_tell_the_same(server: Running) -> None:
    """Also behind a prompt that is scored, chunk by chunk, before the first step."""
    body = {
        "model": "tiny",
        "prompt": json.dumps(SAY),
        "max_tokens": 100,
        "timings_per_token": True,
    }
    asked: dict[str, Any] = {"speculative": {"stats": True, "trace": True}}
    path = "/v1/completions"
    whole = server.client.post(path, json=body | STATS).json()
    for echo in ({}, {"echo": True, "logprobs": 0}):
        answer = server.client.post(path, json=body | asked | echo | {"stream": True})
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        *chunks, last = [json.loads(line) for line in lines[:-1]]
        tokens = [token for chunk in chunks for token in chunk.get("falcon", {}).get("tokens", [])]
        assert len(tokens) == whole["usage"]["completion_tokens"]
        assert all("timings" in chunk for chunk in chunks)
        assert last["metrics"] == whole["metrics"]
        assert last["timings"]["predicted_n"] == whole["timings"]["predicted_n"] == len(tokens)


def test_a_trace_is_for_streams_alone(server: Running) -> None:
    error = server.post(server.chat(SAY, **TRACE)).json()["error"]
    assert error["param"] == "speculative.trace"
    assert "stream" in error["message"]
    for name in ("stats", "trace"):
        refused = server.post(server.chat(SAY, speculative={name: 1}, stream=True))
        assert refused.json()["error"]["param"] == f"speculative.{name}"


def test_openais_client_reads_what_it_does_not_know(server: Running) -> None:
    extra: dict[str, Any] = {"speculative": {"stats": True, "trace": True}}
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": json.dumps(SAY)}],
            prediction={"type": "content", "content": "hello"},
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra,
        ) as stream,
    ):
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SAY["say"]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.accepted_prediction_tokens


def step(accepted: int, drafted: int, rejected: int = 0) -> RequestOutput:
    return RequestOutput(
        "a",
        [3] * (accepted + 1),
        None,
        drafted,
        accepted,
        sources=[*["predicted"] * accepted, "bonus"],  # type: ignore[list-item]  # a literal
        predicted=drafted,
        rejected_predicted=rejected,
    )


def test_steps_that_did_not_speculate_are_no_steps_of_speculation() -> None:
    tally = Tally()
    for output in (step(0, 0), step(2, 5, 3), step(0, 5, 5)):
        figures = tally.add(output, 1 + output.accepted)
    assert (figures.steps, figures.accepted, figures.drafted, figures.widest) == (
        (1, 0, 1),
        2,
        10,
        5,
    )
    assert (figures.accepted_predicted, figures.rejected_predicted) == (2, 8)
    assert metrics(figures)["speculative_decoding"]["mean_acceptance_length"] == 2.0


def test_without_any_step_rates_are_those_of_plain_decoding() -> None:
    own = metrics(Figures())["speculative_decoding"]
    assert (own["mean_acceptance_length"], own["draft_acceptance_rate"]) == (1.0, 0.0)
    assert timings(Figures(), 5, 5, 0)["predicted_per_second"] == 0.0


def test_choices_add_up_and_their_times_overlap() -> None:
    both = total(
        [
            Figures(5.0, 100.0, 8, 3, 4, (0, 1, 1), 3, 5),
            Figures(6.0, 80.0, 4, 0, 2, (1,), 0, 4),
        ]
    )
    assert both == Figures(5.0, 100.0, 12, 3, 4, (1, 1, 1), 3, 9)
