"""What a response request may not say: refused by the name that it has there, or reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.settings import Limits
from server.unsupported import IGNORED_HEADER
from tests.server_harness import Running, build_model_folder, running_server

CANARY = "canary7f3a"
CONTEXT = 1024
USER = {"role": "user", "content": "hi"}
IMAGE = {"type": "input_image", "image_url": CANARY}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "7"}
TOOL = {"type": "function", "name": "f"}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder, model_len=CONTEXT) as running:
        yield running


def post(server: Running, **fields: Any) -> httpx.Response:
    return server.client.post("/v1/responses", json={"model": "tiny", "input": "hi"} | fields)


def error_of(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert CANARY not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [USER] * 2049}, "input"),
        ({"input": [USER] * 513}, "input"),
        ({"input": [USER, CANARY]}, "input.1"),
        ({"input": [{"type": CANARY}]}, "input.0.type"),
        ({"input": [{"type": ["message"]}]}, "input.0.type"),
        ({"input": [{"type": "item_reference", "id": CANARY}]}, "input.0.type"),
        ({"input": [{"type": "web_search_call", "id": CANARY}]}, "input.0.type"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": CANARY, "content": "x"}]}, "input.0.role"),
        ({"input": [USER, USER | {"content": []}]}, "input.1.content"),
        ({"input": [{"role": "user", "content": [{"type": "text"}]}]}, "input.0.content"),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": CANARY}]}
                ]
            },
            "input.0.content",
        ),
        ({"input": [CALL | {"arguments": {}}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input.0.name"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": 7}]},
            "input.0.output",
        ),
        ({"input": [{"type": "reasoning", "content": [7]}]}, "input.0.content"),
        ({"instructions": ["x"]}, "instructions"),
        ({"temperature": 2.1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tool_calls": "3"}, "max_tool_calls"),
        ({"min_tokens": 5, "max_output_tokens": 4}, "min_tokens"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"include": CANARY}, "include"),
        ({"truncation": "auto"}, "truncation"),
        ({"metadata": {CANARY: 7}}, "metadata"),
        ({"metadata": {CANARY * 10: "x"}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": []}, "metadata"),
        ({"user": 7}, "user"),
        ({"text": "json"}, "text"),
        ({"text": {"format": "json"}}, "text.format"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": {}}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL, TOOL | {"type": "custom"}]}, "tools.1.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [TOOL | {"name": CANARY + " "}]}, "tools.0.name"),
        ({"tools": [TOOL, TOOL]}, "tools.1.name"),
        ({"tools": [TOOL | {"parameters": CANARY}]}, "tools.0.parameters"),
        ({"tools": [TOOL | {"strict": 1}]}, "tools.0.strict"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": CANARY}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": ALLOWED | {"mode": "none"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": ALLOWED | {"tools": []}}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"input": [USER, OUTPUT]}, "input.1.call_id"),
        ({"input": [CALL | {"call_id": ""}, OUTPUT]}, "input.0.call_id"),
        ({"input": [USER, CALL, CALL | {"name": CANARY + " "}]}, "input.2.name"),
        ({"reasoning": {"effort": CANARY}}, "reasoning.effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ],
)
def test_bad_values_name_the_field(server: Running, fields: dict[str, Any], param: str) -> None:
    error = error_of(post(server, **fields))
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": CANARY}, "previous_response_id"),
        ({"conversation": CANARY}, "conversation"),
        ({"conversation": {"id": CANARY}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": CANARY}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"n": 2}, "n"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning_effort": "none"}, "reasoning_effort"),
        ({"messages": [USER]}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"stream": True, "speculative": {"trace": True}}, "speculative.trace"),
        ({"timings_per_token": True}, "timings_per_token"),
        ({"prediction": {"type": "content", "content": CANARY}}, "prediction"),
        (
            {
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            },
            "stream_options.continuous_usage_stats",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
    ],
)
def test_what_this_server_does_not_do_is_refused_by_name(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    error = error_of(post(server, **fields))
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert f"'{param}'" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"store": False},
        {"background": False},
        {"truncation": "disabled"},
        {"include": ["reasoning.encrypted_content"]},
        {"text": {"verbosity": "medium"}},
        {"text": {"format": {"type": "text"}}},
        {"reasoning": {"summary": "auto", "effort": "none"}},
        {"tools": [], "tool_choice": "auto"},
        {"tools": [TOOL | {"strict": None, "parameters": None}], "tool_choice": ALLOWED},
        {"reasoning": None, "text": None, "metadata": None, "include": None},
        {"service_tier": "auto", "client_metadata": {"a": "b"}, "parallel_tool_calls": True},
        {"stream_options": None, "previous_response_id": None, "n": 1},
    ],
)
def test_what_asks_for_nothing_else_is_taken(server: Running, fields: dict[str, Any]) -> None:
    answer = post(server, **fields)
    assert answer.status_code == 200, answer.text
    assert IGNORED_HEADER not in answer.headers


def test_unknown_fields_are_reported_wherever_they_stand(folder: Path, server: Running) -> None:
    fields = {
        "strange": 1,
        "speculative": {"strange": 1},
        "text": {"strange": 1},
        "reasoning": {"strange": 1},
        "input": [USER | {"strange": 1}, {"type": "reasoning", "encrypted_content": "x"}, USER],
        "tools": [TOOL | {"strange": 1}],
        "chat_template_kwargs": {"strange": 1},
    }
    expected = [
        *("speculative.strange", "strange", "text.strange", "reasoning.strange", "input.0.strange"),
        *("input.1.encrypted_content", "tools.0.strange", "chat_template_kwargs.strange"),
    ]
    answer = post(server, **fields)
    assert answer.headers[IGNORED_HEADER] == ", ".join(expected)
    limits = Limits(strict_params=True)
    with running_server(folder, model_len=CONTEXT, limits=limits) as strict:
        assert error_of(post(strict, **fields))["param"] == expected[0]


def test_a_prompt_that_is_too_long_is_told_as_of_the_input(server: Running) -> None:
    error = error_of(post(server, input="é" * CONTEXT))
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    assert f"maximum context length is {CONTEXT} tokens" in error["message"]
    error = error_of(post(server, max_output_tokens=CONTEXT))
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


def test_what_the_template_refuses_is_of_the_input(server: Running) -> None:
    error = error_of(post(server, input="refuse me"))
    assert error["param"] == "input"
    assert "Not that." in error["message"]


def test_an_unknown_model_is_not_found(server: Running) -> None:
    assert error_of(post(server, model=CANARY), 404)["code"] == "model_not_found"
