"""Thoughts over HTTP: apart from the answer, under both names, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server_harness import Running, running_server
from tests.tool_chat import TOOLS, build_tool_folder, call, joined

SAY = "<think>\nOne < two, as é shows.\n</think>\n\nTwo."
THOUGHTS = "One < two, as é shows."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = build_tool_folder(tmp_path_factory.mktemp("model"))
    with running_server(folder, model_len=2048) as running:
        yield running


def ask(server: Running, say: str, step: int = 2, **fields: Any) -> dict[str, Any]:
    return server.chat({"say": say, "step": step}, **fields)


def whole(server: Running, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """Message and usage, the number of thought tokens among it."""
    answer = server.post(body)
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    usage = reply["usage"] | reply["usage"]["completion_tokens_details"]
    assert 0 <= usage["reasoning_tokens"] <= usage["completion_tokens"]
    return reply["choices"][0]["message"], usage


def test_thoughts_are_beside_the_content_under_both_names(server: Running) -> None:
    message, usage = whole(server, ask(server, SAY))
    assert message["content"] == "Two."
    assert message["reasoning"] == message["reasoning_content"] == THOUGHTS
    assert 0 < usage["reasoning_tokens"] < usage["completion_tokens"]


@pytest.mark.parametrize("step", [1, 3, 500])
@pytest.mark.parametrize("interval", [None, 1, 4])
def test_a_stream_adds_up_to_the_whole_answer_whatever_its_steps(
    server: Running, step: int, interval: int | None
) -> None:
    options = {"stream_options": {"include_usage": True}, "stream_interval": interval}
    events = server.events(ask(server, SAY, step, **options))
    message = joined(events)[0]
    assert (message["content"], message["finish_reason"]) == ("Two.", "stop")
    assert message["reasoning"] == message["reasoning_content"] == THOUGHTS
    assert events[-2]["usage"] == server.post(ask(server, SAY, step)).json()["usage"]


def test_a_prompt_may_open_the_thoughts_itself(server: Running) -> None:
    open_ = {"chat_template_kwargs": {"thinks": True}}
    message, usage = whole(server, ask(server, "hm\n</think>Two.", **open_))
    assert (message["reasoning"], message["content"]) == ("hm", "Two.")
    assert usage["reasoning_tokens"] > 0
    message, usage = whole(server, ask(server, "Two.", **open_))
    assert (message["reasoning"], message["content"]) == ("Two.", None)
    assert usage["reasoning_tokens"] == usage["completion_tokens"]


def test_an_answer_without_thoughts_has_none(server: Running) -> None:
    message, usage = whole(server, ask(server, "Two. <think>"))
    assert set(message) == {"role", "content", "refusal"}
    assert message["content"] == "Two. <think>"
    assert usage["reasoning_tokens"] == 0


def test_hidden_thoughts_are_counted_and_not_told(server: Running) -> None:
    body = ask(server, SAY, include_reasoning=False)
    message, usage = whole(server, body)
    assert set(message) == {"role", "content", "refusal"}
    assert message["content"] == "Two."
    assert usage == whole(server, ask(server, SAY))[1]
    assert "reasoning" not in joined(server.events(body))[0]


@pytest.mark.parametrize("step", [1, 500])
def test_thoughts_that_are_cut_are_all_there_is(server: Running, step: int) -> None:
    reply = server.post(ask(server, SAY, step, max_tokens=9)).json()
    choice, usage = reply["choices"][0], reply["usage"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] is None
    assert THOUGHTS.startswith(choice["message"]["reasoning"])
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 9}


def test_calls_follow_thoughts_and_are_none_within_them(server: Running) -> None:
    say = f"<think>{call('now')}</think>\n{call(city='Oslo')}"
    body = ask(server, say, tools=TOOLS)
    message, _ = whole(server, body)
    assert message["reasoning"] == call("now")
    (made,) = message["tool_calls"]
    assert made["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert message["content"] is None
    streamed = joined(server.events(body))[0]
    assert streamed["tool_calls"][0]["function"] == made["function"]
    assert streamed["reasoning"] == message["reasoning"]


def test_thoughts_can_be_continued_and_sent_back(server: Running) -> None:
    body = ask(server, "ght.</think>Two.", continue_final_message=True)
    body["messages"].append({"role": "assistant", "content": "<think>I thou"})
    message, _ = whole(server, body)
    assert (message["reasoning"], message["content"]) == ("ght.", "Two.")
    body = ask(server, SAY)
    body["messages"] += [message, {"role": "user", "content": '{"say": "Three."}'}]
    assert whole(server, body)[0]["content"] == "Three."


def test_choices_add_their_thoughts_up(server: Running) -> None:
    one, three = (whole(server, ask(server, SAY, n=n))[1] for n in (1, 3))
    assert three["reasoning_tokens"] == 3 * one["reasoning_tokens"]
