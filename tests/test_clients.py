"""What people already use talks to the demo pair by changing one URL: `make clients`.

Clients that are not installed are skipped; those of OpenAI for Python are in the other tests too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import openai
import pytest
from pydantic import BaseModel, Field

from benchmarks.own_server import own_server

MODEL = "falcon-demo"
ASK = "How many legs does a bird have?"
NODE_CLIENT = Path(__file__).with_name("client.mjs")
NODE_MODULES = Path(__file__).parent.parent / "node_modules"


class Bird(BaseModel):
    """A kind of bird."""

    name: Annotated[str, Field(max_length=12)]
    legs: Annotated[int, Field(ge=0, le=8)]


def look_up(word: str, limit: int = 3) -> str:
    """Look a word up in the dictionary."""
    return word * limit


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with own_server("--threads", "1") as (address, _):
        yield address


def test_openai_python_parses_objects_and_calls(server: str) -> None:
    with openai.OpenAI(base_url=server, api_key="none", max_retries=0) as client:
        parsed = client.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "user", "content": ASK}],
            response_format=Bird,
            seed=1,
        )
        assert isinstance(parsed.choices[0].message.parsed, Bird)
        called = client.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "user", "content": ASK}],
            tools=[openai.pydantic_function_tool(Bird)],
            tool_choice="required",
            parallel_tool_calls=False,
            seed=1,
        )
        calls = called.choices[0].message.tool_calls
        assert calls
        assert all(isinstance(call.function.parsed_arguments, Bird) for call in calls)
        assert called.choices[0].finish_reason == "tool_calls"


async def test_openai_python_streams_asynchronously(server: str) -> None:
    async with openai.AsyncOpenAI(base_url=server, api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": ASK}],
            max_completion_tokens=24,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
        assert chunks[-1].usage is not None
        assert 0 < chunks[-1].usage.completion_tokens <= 24
        response = await client.responses.create(model=MODEL, input=ASK, max_output_tokens=24)
        assert response.output_text


def test_openai_node(server: str) -> None:
    node = shutil.which("node")
    if node is None or not (NODE_MODULES / "openai").is_dir():
        pytest.skip("needs node and the package openai in node_modules: make clients")
    command = [node, str(NODE_CLIENT), server, MODEL]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["streamed"] == found["whole"]
    assert set(found["parsed"]) == {"name", "legs"}
    assert found["tool"] == "look_up"
    assert found["response"]
    assert found["models"] == [MODEL]


def test_langchain(server: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    options: dict[str, Any] = {
        "base_url": server,
        "api_key": "none",
        "model": MODEL,
        "max_retries": 0,
        "stream_usage": True,
        "max_tokens": 96,
        "seed": 1,
    }
    chat = langchain.ChatOpenAI(**options, temperature=0)
    whole = chat.invoke(ASK)
    chunks = list(chat.stream(ASK))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert chunks[-1].usage_metadata or any(chunk.usage_metadata for chunk in chunks)
    assert whole.usage_metadata["output_tokens"] > 0
    assert len(chat.batch([ASK, "Hello!"])) == 2
    for method in ("json_schema", "function_calling"):
        shaped = chat.with_structured_output(Bird, method=method).invoke(ASK)
        assert isinstance(shaped, Bird), method
    called = chat.bind_tools([look_up], tool_choice="required", parallel_tool_calls=False).invoke(
        ASK
    )
    assert {call["name"] for call in called.tool_calls} == {"look_up"}
    options |= {"seed": None, "temperature": 0}  # its responses take no seed
    responses = langchain.ChatOpenAI(**options, use_responses_api=True)
    whole = responses.invoke(ASK)
    assert "".join(chunk.text for chunk in responses.stream(ASK)) == whole.text
    called = responses.bind_tools(
        [look_up], tool_choice="required", parallel_tool_calls=False
    ).invoke(ASK)
    assert {call["name"] for call in called.tool_calls} == {"look_up"}
    answers = [
        {"role": "tool", "content": "a bird", "tool_call_id": call["id"]}
        for call in called.tool_calls
    ]
    assert responses.invoke([("user", ASK), called, *answers]).text


def test_litellm(server: str) -> None:
    litellm = pytest.importorskip("litellm")
    options: dict[str, Any] = {"api_base": server, "api_key": "none", "max_tokens": 24, "seed": 1}
    messages = [{"role": "user", "content": ASK}]
    for provider in ("hosted_vllm", "openai"):
        ask = {"model": f"{provider}/{MODEL}", "messages": messages} | options
        whole = litellm.completion(**ask)
        pieces = [
            part.choices[0].delta.content or "" for part in litellm.completion(**ask, stream=True)
        ]
        assert "".join(pieces) == whole.choices[0].message.content
        assert whole.usage.completion_tokens > 0
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**ask | {"temperature": 3.0})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**ask | {"model": "openai/unknown"})
