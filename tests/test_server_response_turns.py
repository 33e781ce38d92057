"""Items of a response request become the chat messages that they are."""

from __future__ import annotations

from typing import Any

import pytest

from server.response_input import read_items
from server.response_turns import Turns

QUESTION = {"role": "user", "content": "weather?"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": []}
CALL = {"type": "function_call", "id": "fc_1", "status": "completed", "arguments": "{}"}


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def said(content: str) -> dict[str, Any]:
    """A message of the model's as an earlier response put it out."""
    part = {"type": "output_text", "text": content, "annotations": [], "logprobs": []}
    head = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant"}
    return head | {"content": [part]}


def thought(*texts: str) -> dict[str, Any]:
    return THOUGHT | {"content": [{"type": "reasoning_text", "text": text} for text in texts]}


def call(call_id: str) -> dict[str, Any]:
    return CALL | {"call_id": call_id, "name": f"name_{call_id}"}


def output(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": "7"}


def chat_call(call_id: str) -> dict[str, Any]:
    function = {"name": f"name_{call_id}", "arguments": "{}"}
    return {"id": call_id, "type": "function", "function": function}


def chat_output(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text("7")}


def conversation(*items: dict[str, Any], instructions: str | None = None) -> Turns:
    return Turns(instructions, read_items(list(items)))


def test_a_string_is_a_message_of_the_users() -> None:
    messages = Turns(None, read_items("hi")).messages
    assert messages == [{"role": "user", "content": text("hi")}]


@pytest.mark.parametrize(
    ("items", "turn"),
    [
        ([said("a")], {"content": text("a")}),
        (
            [{"role": "assistant", "content": "a", "phase": "final_answer"}],
            {"content": text("a")},
        ),
        ([thought("t"), said("a")], {"reasoning_content": "t", "content": text("a")}),
        ([thought("t", "u"), said("a")], {"reasoning_content": "t\nu", "content": text("a")}),
        ([THOUGHT, said("a")], {"content": text("a")}),
        ([THOUGHT | {"content": [], "encrypted_content": "x"}, said("a")], {"content": text("a")}),
        ([THOUGHT | {"content": None}, said("a")], {"content": text("a")}),
        ([call("c")], {"tool_calls": [chat_call("c")]}),
        ([call("c"), call("d")], {"tool_calls": [chat_call("c"), chat_call("d")]}),
        (
            [thought("t"), said("a"), call("c"), call("d")],
            {
                "reasoning_content": "t",
                "content": text("a"),
                "tool_calls": [chat_call("c"), chat_call("d")],
            },
        ),
        (
            [thought("t"), call("c"), thought("u"), call("d")],
            {"reasoning_content": "t\nu", "tool_calls": [chat_call("c"), chat_call("d")]},
        ),
        ([call("c"), said("a")], {"tool_calls": [chat_call("c")], "content": text("a")}),
        ([thought("t")], {"reasoning_content": "t"}),
    ],
)
def test_the_items_of_one_answer_are_one_message(
    items: list[dict[str, Any]], turn: dict[str, Any]
) -> None:
    messages = conversation(QUESTION, *items, QUESTION).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1] == {"role": "assistant"} | turn


def test_answers_that_follow_each_other_stay_two() -> None:
    first, second = conversation(said("a"), thought("t"), said("b")).messages
    assert first["content"] == text("a")
    assert (second["reasoning_content"], second["content"]) == ("t", text("b"))


def test_outputs_of_calls_end_the_turn() -> None:
    items = [QUESTION, call("c"), call("d"), output("c"), output("d"), call("e"), output("e")]
    messages = conversation(*items, said("done")).messages
    assert messages[1:] == [
        {"role": "assistant", "tool_calls": [chat_call("c"), chat_call("d")]},
        chat_output("c"),
        chat_output("d"),
        {"role": "assistant", "tool_calls": [chat_call("e")]},
        chat_output("e"),
        {"role": "assistant", "content": text("done")},
    ]


def test_instructions_and_what_a_developer_says_at_once_are_one_system_message() -> None:
    developer = {"role": "developer", "content": "be brief"}
    items = [developer, {"role": "system", "content": "be kind"}, QUESTION, developer]
    messages = conversation(*items, instructions="obey").messages
    assert [message["role"] for message in messages] == ["system", "user", "developer"]
    assert messages[0]["content"] == text("obey", "be brief", "be kind")


def test_without_instructions_roles_stay_as_they_are() -> None:
    items = [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, QUESTION]
    assert [m["role"] for m in conversation(*items).messages] == ["developer", "system", "user"]


def test_every_place_in_chat_has_the_name_of_where_it_came_from() -> None:
    items = [QUESTION, thought("t"), said("a"), call("c"), call("d"), output("d")]
    assert conversation(*items, instructions="obey").names == {
        "messages.0": "instructions",
        "messages.0.content": "instructions",
        "messages.1": "input.0",
        "messages.2": "input.1",
        "messages.2.content": "input.2.content",
        "messages.2.tool_calls.0": "input.3",
        "messages.2.tool_calls.0.id": "input.3.call_id",
        "messages.2.tool_calls.0.function": "input.3",
        "messages.2.tool_calls.1": "input.4",
        "messages.2.tool_calls.1.id": "input.4.call_id",
        "messages.2.tool_calls.1.function": "input.4",
        "messages.3": "input.5",
        "messages.3.content": "input.5.output",
        "messages.3.tool_call_id": "input.5.call_id",
    }
