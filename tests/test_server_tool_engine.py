"""Tools with a real engine: whatever the model, what must be a call is one, and is valid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from fakes import save_random_drafter, save_random_target
from openai import pydantic_function_tool
from pydantic import BaseModel, Field
from transformers import LlamaConfig

from engine.client import WORKER_COMMAND
from engine.config import EngineConfig
from server.settings import Address, Settings
from tests.server_harness import Running, build_model_folder, serving
from tests.tool_chat import joined

TEMPLATE = (
    '<|bos|>{% if tools %}<tool_call>{"name": "arguments"}{{ tools | tojson }}{% endif %}'
    "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}<|assistant|>"
)


class Order(BaseModel):
    size: Literal["small", "large"]
    hot: bool
    count: Annotated[int, Field(ge=1, le=12)]
    toppings: Annotated[list[Literal["salt", "oil"]], Field(max_length=2)]
    note: Annotated[str, Field(max_length=4)] | None


class Cancel(BaseModel):
    all: bool


MODELS: dict[str, type[BaseModel]] = {"Order": Order, "Cancel": Cancel}
TOOLS: list[Any] = [pydantic_function_tool(model) for model in MODELS.values()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A random llama, which would say anything, with a random drafter."""
    folder = build_model_folder(tmp_path_factory.mktemp("model"), TEMPLATE)
    config = LlamaConfig(
        vocab_size=352,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
    )
    save_random_target(config, folder)
    drafter = save_random_drafter(folder, folder / "drafter")
    engine = EngineConfig(model=str(folder), drafter=str(drafter), max_num_seqs=4)
    settings = Settings(engine, ("tiny",), Address("127.0.0.1", 0))
    with serving(settings, WORKER_COMMAND, folder / "log", start_seconds=60) as running:
        yield running


def ask(server: Running, **fields: Any) -> dict[str, Any]:
    return server.chat("x", **({"tools": TOOLS, "max_tokens": 160, "n": 4} | fields))


def choices(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = server.post(body, timeout=60)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["choices"]
    return found


def calls_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]
    ]


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_a_required_call_is_there_and_valid(server: Running, temperature: float) -> None:
    for seed in range(2 if temperature else 1):
        body = ask(server, tool_choice="required", parallel_tool_calls=False, seed=seed)
        for choice in choices(server, body | {"temperature": temperature}):
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["content"] is None
            [(name, arguments)] = calls_of(choice["message"])
            MODELS[name].model_validate_json(arguments, strict=True)


def test_several_required_calls_are_all_valid_but_one_that_is_cut(server: Running) -> None:
    for choice in choices(server, ask(server, tool_choice="required", seed=3)):
        assert not choice["message"]["content"]
        calls = calls_of(choice["message"])
        whole = calls[:-1] if choice["finish_reason"] == "length" else calls
        for name, arguments in whole:
            MODELS[name].model_validate_json(arguments, strict=True)


def test_a_named_function_is_the_one_that_is_called(server: Running) -> None:
    named = {"type": "function", "function": {"name": "Cancel"}}
    for choice in choices(server, ask(server, tool_choice=named)):
        assert choice["finish_reason"] == "stop"
        [(name, arguments)] = calls_of(choice["message"])
        assert name == "Cancel"
        Cancel.model_validate_json(arguments, strict=True)


@pytest.mark.parametrize("temperature", [0, 1])
def test_speculation_changes_no_call(server: Running, temperature: float) -> None:
    body = ask(server, tool_choice="required", seed=5, temperature=temperature)
    body |= {"parallel_tool_calls": False}
    plain = choices(server, body | {"speculative": {"enabled": False}})
    streamed = joined(server.events(body | {"stream_interval": 1}))
    for index, choice in enumerate(plain):
        assert calls_of(streamed[index]) == calls_of(choice["message"])


def test_a_schema_that_cannot_be_enforced_is_refused_only_where_it_must_be(
    server: Running,
) -> None:
    parameters = {"type": "object", "properties": {"a": {"not": {}}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    body = server.chat("x", tools=[tool], max_tokens=4)
    assert server.post(body).status_code == 200
    refused = server.post(body | {"tool_choice": "required"})
    assert refused.status_code == 400
    assert "'not'" in refused.json()["error"]["message"]


@pytest.mark.parametrize("strict", [True, False])
def test_the_answer_is_free_where_no_call_must_be(server: Running, strict: bool) -> None:
    functions = [tool["function"] | {"strict": strict} for tool in TOOLS]
    tools = [{"type": "function", "function": function} for function in functions]
    for choice in choices(server, ask(server, tools=tools, max_tokens=24, seed=3)):
        assert choice["message"]["content"]
