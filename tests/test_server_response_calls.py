"""Function calls and reasoning in responses, and conversations that go on with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import ParsedResponseFunctionToolCall
from pydantic import BaseModel

from tests.response_schema import kinds, streamed, whole
from tests.server_harness import TEMPLATE, Running, build_model_folder, running_server

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "name": "weather", "description": "Of today.", "parameters": PARAMETERS}
ARGUMENTS = '{"city": "Paris é"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
CALL_EVENTS = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


def text_events(part: str) -> list[str]:
    return [
        "response.output_item.added",
        "response.content_part.added",
        f"response.{part}.delta",
        f"response.{part}.done",
        "response.content_part.done",
        "response.output_item.done",
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Of a model that thinks: its template says so."""
    folder = build_model_folder(tmp_path_factory.mktemp("model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    thoughts = "'<think>' + message['reasoning_content'] + '</think>'"
    shown = f"{{% if message['reasoning_content'] %}}{{{{ {thoughts} }}}}{{% endif %}}"
    config["chat_template"] = TEMPLATE.replace("{{ '<|'", shown + "{{ '<|'", 1)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server_harness.WORKER", Path(__file__).with_name("telling_worker.py"))
        with running_server(folder, model_len=8192) as running:
            yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(say: str, **fields: Any) -> dict[str, Any]:
    orders = json.dumps({"say": say, "step": 3})
    return {"model": "tiny", "input": orders, "tools": [TOOL]} | fields


def described(items: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Type, status and text of each item."""
    found = []
    for item in items:
        text = item["arguments"] if "arguments" in item else item["content"][0]["text"]
        found.append((item["type"], item["status"], text))
    return found


@pytest.mark.parametrize(
    ("say", "items"),
    [
        (CALL, [("function_call", ARGUMENTS)]),
        (f"Let me see. {CALL}", [("message", "Let me see. "), ("function_call", ARGUMENTS)]),
        (f"{CALL}\n{CALL}", [("function_call", ARGUMENTS)] * 2),
        (f"{CALL} So.", [("function_call", ARGUMENTS), ("message", " So.")]),
        ("<think>Hm.</think>Hello.", [("reasoning", "Hm."), ("message", "Hello.")]),
        (
            f"<think>Hm.</think>I look.{CALL}{CALL}",
            [("reasoning", "Hm."), ("message", "I look."), *[("function_call", ARGUMENTS)] * 2],
        ),
        ("<think>Hm.</think>", [("reasoning", "Hm.")]),
    ],
)
def test_an_answer_is_items_told_one_after_the_other(
    server: Running, say: str, items: list[tuple[str, str]]
) -> None:
    response = whole(server, ask(say))
    assert response["status"] == "completed"
    assert described(response["output"]) == [(kind, "completed", text) for kind, text in items]
    events = streamed(server, ask(say))
    parts = {"message": "output_text", "reasoning": "reasoning_text"}
    expected = [CALL_EVENTS if k == "function_call" else text_events(parts[k]) for k, _ in items]
    assert kinds(events[2:-1]) == [kind for own in expected for kind in own]
    last = events[-1]["response"]
    assert described(last["output"]) == described(response["output"])
    assert last["usage"] == response["usage"]
    for index, (item, (_, text)) in enumerate(zip(last["output"], items, strict=True)):
        own = [event for event in events if event.get("output_index") == index]
        assert "".join(event.get("delta", "") for event in own) == text
        assert {event["item_id"] for event in own if "item_id" in event} == {item["id"]}
        assert own[-1]["item"] == item


def test_calls_have_ids_of_their_own(server: Running) -> None:
    first, second = whole(server, ask(CALL + CALL))["output"]
    assert first["id"].startswith("fc_")
    assert first["call_id"].startswith("call_")
    assert first["name"] == "weather"
    assert len({first["id"], second["id"], first["call_id"], second["call_id"]}) == 4


def test_reasoning_tokens_are_counted(server: Running) -> None:
    usage = whole(server, ask("<think>Hm.</think>Hello."))["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]


def test_arguments_that_are_cut_off_leave_an_incomplete_call(server: Running) -> None:
    body = ask(CALL, max_output_tokens=60)
    response = whole(server, body)
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert ARGUMENTS.startswith(response["output"][0]["arguments"])
    assert streamed(server, body)[-1]["type"] == "response.incomplete"


def test_log_probabilities_are_of_the_message_alone(server: Running) -> None:
    body = ask(f"<think>Hm.</think>I look.{CALL}", include=["message.output_text.logprobs"])
    runs = [whole(server, body | {"input": body["input"].replace("3", n)}) for n in "138"]
    messages = [response["output"][1]["content"][0] for response in runs]
    tokens = "".join(entry["token"] for entry in messages[0]["logprobs"])
    assert tokens == "</think>I look.", "with what came between them and the thoughts"
    assert messages[0] == messages[1] == messages[2], "however many tokens a step has"


def test_tools_are_echoed_and_the_choice_too(server: Running) -> None:
    choice = {"type": "function", "name": "weather"}
    response = whole(server, ask(CALL, tool_choice=choice, parallel_tool_calls=False))
    assert response["tools"] == [TOOL | {"strict": False}]
    assert response["tool_choice"] == choice
    assert response["parallel_tool_calls"] is False
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [choice]}
    assert whole(server, ask(CALL, tool_choice=allowed))["tool_choice"] == allowed


def test_openais_client_parses_the_arguments(client: openai.OpenAI) -> None:
    class Weather(BaseModel):
        city: str

    tool = openai.pydantic_function_tool(Weather, name="weather")
    orders = json.dumps({"say": CALL})
    response = client.responses.parse(model="tiny", input=orders, tools=[tool])  # type: ignore[list-item]
    (call,) = response.output
    assert isinstance(call, ParsedResponseFunctionToolCall)
    assert call.parsed_arguments == Weather(city="Paris é")


def test_a_conversation_goes_on_with_the_items_as_they_came(
    server: Running, client: openai.OpenAI
) -> None:
    """The prompt is the one that chat makes of the same turns."""
    question = {"role": "user", "content": ask(f"<think>Hm.</think>I look.{CALL}{CALL}")["input"]}
    tools: Any = [TOOL]
    first = client.responses.create(model="tiny", input=[question], tools=tools)
    calls = [item for item in first.output if item.type == "function_call"]
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": '{"sun": true}'}
        for call in calls
    ]
    second = client.responses.create(
        model="tiny", input=[question, *first.output, *outputs], tools=tools
    )
    assert second.output_text.startswith("echo:<tool_response>")
    order = {"role": "user", "content": json.dumps({"tell": "prompt_ids"})}
    history: Any = [question, *first.output, *outputs, *second.output, order]
    third = client.responses.create(model="tiny", input=history, tools=tools)
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    made = zip(calls, functions, strict=True)
    messages = [
        question,
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": call.call_id, "type": "function", "function": function}
                for call, function in made
            ],
        },
        *({"role": "tool", "tool_call_id": c.call_id, "content": '{"sun": true}'} for c in calls),
        {"role": "assistant", "content": second.output_text},
        order,
    ]
    function = {key: TOOL[key] for key in ("name", "description", "parameters")}
    chat_tools = [{"type": "function", "function": function}]
    body = {"model": "tiny", "messages": messages, "tools": chat_tools}
    chat = server.post(body).json()["choices"][0]["message"]["content"]
    assert third.output_text == chat
    assert len(json.loads(chat)) > 500


def test_a_coding_agents_second_turn_is_taken(server: Running) -> None:
    """As such clients send it: items without ids, and bookkeeping that is not ours."""
    body = ask(CALL, instructions="You are a coding agent.", store=False, tool_choice="auto")
    said = {"role": "user", "content": [{"type": "input_text", "text": body["input"]}]}
    text = {"type": "output_text", "text": "I look."}
    thought = {"type": "reasoning_text", "text": "Hm."}
    body["input"] = [
        {"type": "message", "role": "developer", "content": "<permissions>all</permissions>"},
        {"type": "message", "role": "user", "content": "<cwd>/home</cwd>"},
        {"type": "message", **said},
        {"type": "reasoning", "summary": [], "content": [thought], "encrypted_content": None},
        {"type": "message", "role": "assistant", "content": [text]},
        {"type": "function_call", "name": "weather", "arguments": ARGUMENTS, "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        {"type": "message", **said},
    ]
    body |= {
        "parallel_tool_calls": False,
        "reasoning": None,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "client_metadata": {"installation": "i"},
        "service_tier": None,
    }
    answer = server.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert "x-falcon-ignored-params" not in answer.headers
    assert kinds(streamed(server, body)) == [
        *("response.created", "response.in_progress", *CALL_EVENTS, "response.completed")
    ]
