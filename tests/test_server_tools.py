"""Tool calls over HTTP: OpenAI's shapes and reasons, in every split of the answer into steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel

from server.settings import Limits
from tests.server_harness import Running, running_server
from tests.tool_chat import TOOLS, build_tool_folder, call, joined

SAY = f"Let me see.\n{call(city='São Paulo')}\n{call('now')}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = build_tool_folder(tmp_path_factory.mktemp("model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server_harness.WORKER", Path(__file__).with_name("telling_worker.py"))
        with running_server(folder, model_len=8192) as running:
            yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(server: Running, say: str, step: int = 2, **fields: Any) -> dict[str, Any]:
    return server.chat({"say": say, "step": step}, **({"tools": TOOLS} | fields))


def choice_of(server: Running, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post(body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def functions(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_calls_are_openais_objects_and_text_before_them_is_content(server: Running) -> None:
    choice = choice_of(server, ask(server, SAY))
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert set(message) == {"role", "content", "refusal", "tool_calls"}
    assert message["content"] == "Let me see.\n"
    assert functions(message) == [("get_weather", '{"city": "São Paulo"}'), ("now", "{}")]
    first, second = message["tool_calls"]
    assert {first["type"], second["type"]} == {"function"}
    assert first["id"] != second["id"]
    assert choice_of(server, ask(server, call("now")))["message"]["content"] is None


@pytest.mark.parametrize("step", [1, 3, 7, 500])
@pytest.mark.parametrize("interval", [None, 1, 5])
def test_a_stream_adds_up_to_the_whole_answer_whatever_its_steps(
    server: Running, step: int, interval: int | None
) -> None:
    body = ask(server, SAY, step, stream_interval=interval)
    message = joined(server.events(body))[0]
    whole = choice_of(server, ask(server, SAY))["message"]
    assert message["content"] == whole["content"]
    assert functions(message) == functions(whole)
    assert message["finish_reason"] == "tool_calls"


def test_every_choice_has_its_own_calls(server: Running) -> None:
    body = ask(server, SAY, n=3)
    whole = server.post(body).json()["choices"]
    streamed = joined(server.events(body))
    assert len(whole) == len(streamed) == 3
    for index, choice in enumerate(whole):
        assert choice["finish_reason"] == "tool_calls"
        assert functions(choice["message"]) == functions(streamed[index])
    made = [call["id"] for message in streamed.values() for call in message["tool_calls"]]
    assert len(set(made)) == 6


@pytest.mark.parametrize(
    "say",
    [
        "A <b> and {} and <tool_call> is a tag.",
        call("unknown", a=1),
        "<tool_call>\n{not json}\n</tool_call>",
        '{"name": "now", "arguments": {}}',
        " ",
    ],
)
def test_what_is_no_call_is_content(server: Running, say: str) -> None:
    choice = choice_of(server, ask(server, say))
    assert (choice["message"]["content"], choice["finish_reason"]) == (say, "stop")
    assert "tool_calls" not in choice["message"]
    assert joined(server.events(ask(server, say)))[0]["content"] == say


def test_without_tools_or_with_none_of_them_allowed_calls_are_not_looked_for(
    server: Running,
) -> None:
    for fields in ({"tools": None}, {"tools": []}, {"tool_choice": "none"}):
        choice = choice_of(server, ask(server, 'a {"name": "now", "arguments": {}}', **fields))
        assert choice["message"]["content"] == 'a {"name": "now", "arguments": {}}'
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("now")]}}
    choice = choice_of(server, ask(server, call("get_weather") + call("now"), tool_choice=allowed))
    assert functions(choice["message"]) == [("now", "{}")]
    assert "get_weather" in choice["message"]["content"]


@pytest.mark.parametrize(
    ("choice", "reason"), [("auto", "tool_calls"), ("required", "tool_calls"), ("named", "stop")]
)
def test_the_finish_reason_is_openais(server: Running, choice: str, reason: str) -> None:
    asked = named("now") if choice == "named" else choice
    body = ask(server, call("now"), tool_choice=asked)
    assert choice_of(server, body)["finish_reason"] == reason
    assert joined(server.events(body))[0]["finish_reason"] == reason


def test_a_call_that_is_cut_is_no_reason_to_call(server: Running) -> None:
    body = ask(server, SAY, max_tokens=50)
    choice = choice_of(server, body)
    assert choice["finish_reason"] == "length"
    [(name, arguments)] = functions(choice["message"])
    assert name == "get_weather"
    assert '{"city": "São Paulo"}'.startswith(arguments)
    stopped = choice_of(server, ask(server, SAY, stop="Paulo"))
    assert stopped["finish_reason"] == "stop"
    assert functions(stopped["message"]) == [("get_weather", '{"city": "São ')]
    behind = choice_of(server, ask(server, SAY + "and more", stop="and"))
    assert behind["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("fields", [{"parallel_tool_calls": False}, {"tool_choice": "named"}])
def test_a_single_call_ends_the_answer_at_the_same_token_in_all_steps(
    server: Running, fields: dict[str, Any]
) -> None:
    if "tool_choice" in fields:
        fields = {"tool_choice": named("get_weather")}
    counts = set()
    for step in (1, 4, 500):
        reply = server.post(ask(server, SAY, step, **fields)).json()
        assert functions(reply["choices"][0]["message"]) == [
            ("get_weather", '{"city": "São Paulo"}')
        ]
        counts.add(reply["usage"]["completion_tokens"])
    assert len(counts) == 1
    assert counts.pop() < server.post(ask(server, SAY)).json()["usage"]["completion_tokens"]


@pytest.mark.parametrize("step", [1, 6])
def test_all_tokens_have_their_log_probabilities(server: Running, step: int) -> None:
    body = ask(server, SAY, step, logprobs=True, top_logprobs=1)
    reply = server.post(body).json()
    entries = reply["choices"][0]["logprobs"]["content"]
    assert len(entries) == reply["usage"]["completion_tokens"]
    assert "".join(entry["token"] for entry in entries[:-1]).replace("\ufffd", "") in (
        SAY.replace("ã", "")
    )
    chunks = [event["choices"][0] for event in server.events(body)[:-1]]
    streamed = [e for chunk in chunks if chunk["logprobs"] for e in chunk["logprobs"]["content"]]
    assert streamed == entries


def grammar_of(server: Running, **fields: Any) -> Any:
    """What the engine was told that an answer may be, behind the thoughts."""
    body = server.chat({"tell": "grammar"}, **({"tools": TOOLS} | fields))
    grammar = json.loads(choice_of(server, body)["message"]["content"])
    return grammar and json.loads(grammar["text"])["format"]["elements"][-1]


def test_the_engine_is_told_to_keep_to_the_tools_where_it_must(server: Running) -> None:
    assert grammar_of(server) is None
    assert grammar_of(server, tool_choice="none") is None
    required = grammar_of(server, tool_choice="required")
    assert (required["at_least_one"], required["stop_after_first"]) == (True, False)
    assert len(required["tags"]) == 2
    single = grammar_of(server, tool_choice="required", parallel_tool_calls=False)
    assert single["stop_after_first"]
    strict = [{"type": "function", "function": TOOLS[0]["function"] | {"strict": True}}]
    assert grammar_of(server, tools=strict)["type"] == "triggered_tags"
    (tag,) = grammar_of(server, tool_choice=named("now"))["tags"]
    assert tag["begin"] == '<tool_call>\n{"name": "now", "arguments": '


def test_the_engine_continues_a_conversation_with_calls(server: Running) -> None:
    body = ask(server, "It is sunny.")
    body["messages"] += [choice_of(server, ask(server, SAY))["message"]]
    first, second = body["messages"][-1]["tool_calls"]
    for made, content in ((first, "sunny"), (second, "noon <|end|>")):
        body["messages"].append({"role": "tool", "tool_call_id": made["id"], "content": content})
    assert choice_of(server, body)["message"]["content"] == "It is sunny."


def test_variables_that_the_template_does_not_know_are_reported(
    server: Running, tmp_path: Path
) -> None:
    body = server.chat(chat_template_kwargs={"thinks": False, "mood": 1})
    assert server.post(body).headers["x-falcon-ignored-params"] == "chat_template_kwargs.mood"
    folder = build_tool_folder(tmp_path / "m")
    with running_server(folder, limits=Limits(strict_params=True)) as strict:
        assert strict.post(body).json()["error"]["param"] == "chat_template_kwargs.mood"
        assert strict.post(body | {"chat_template_kwargs": {"thinks": True}}).status_code == 200


def test_a_continued_message_goes_on_where_it_ends(server: Running) -> None:
    order = json.dumps({"tell": "prompt_ids"})
    said = {"role": "assistant", "content": "I th<|end|>ink "}
    body = server.chat(order, continue_final_message=True)
    body["messages"].append(said)

    def prompt(**fields: Any) -> list[int]:
        found: list[int] = json.loads(choice_of(server, body | fields)["message"]["content"])
        return found

    end = prompt()
    assert 1 not in end[-6:]
    closed = prompt(continue_final_message=False, add_generation_prompt=False)
    assert closed == [*end, 1]
    assert prompt(continue_final_message=False) == [*closed, 4]


def test_all_that_a_template_is_given_is_bounded(server: Running) -> None:
    long = "x" * (8 * 8192)
    tool = {"type": "function", "function": {"name": "f", "description": long}}
    nested = {"type": "function", "function": {"name": "f", "parameters": {"x": [{long: 1}]}}}
    made = {"id": "c", "type": "function", "function": {"name": "f", "arguments": long}}
    calling = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [made]}]
    for fields in (
        {"tools": [tool]},
        {"tools": [nested]},
        {"messages": calling},
        {"chat_template_kwargs": {"mood": [long]}},
    ):
        answer = server.post(server.chat() | fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"


class Weather(BaseModel):
    """The weather of a city."""

    city: str


def test_openais_client_parses_calls_into_models(client: openai.OpenAI) -> None:
    order = json.dumps({"say": call("Weather", city="Oslo"), "step": 5})
    messages: Any = [{"role": "user", "content": order}]
    tools = [pydantic_function_tool(Weather)]
    reply = client.chat.completions.parse(model="tiny", messages=messages, tools=tools)
    (made,) = reply.choices[0].message.tool_calls or []
    assert made.function.parsed_arguments == Weather(city="Oslo")
    with client.chat.completions.stream(model="tiny", messages=messages, tools=tools) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    (made,) = final.choices[0].message.tool_calls or []
    assert made.function.parsed_arguments == Weather(city="Oslo")
    assert final.choices[0].finish_reason == "tool_calls"
