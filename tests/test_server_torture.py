"""Eight streams at once, each with a grammar of its own: all that is whole validates, and
speculation changes no token. `FALCON_TORTURE=500` asks for more than the few of every day.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes import save_random_drafter
from jsonschema import Draft202012Validator
from random_schemas import random_schema
from text_target import save_text_target

from benchmarks.clocks import read_metrics
from benchmarks.own_server import own_server
from engine.grammar.json_schemas import normalized
from engine.grammar.regexes import GrammarError

COUNT = int(os.environ.get("FALCON_TORTURE", "16"))
AT_ONCE = 8
PATTERNS = ["[a-c]{2,6}(x|yz)+", r"\d{1,3}(\.\d{1,2})?", '"[^"]{1,9}"', "(yes|no), [A-Z][a-z]*!"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("torture")
    target = save_text_target(folder / "target")
    drafter = save_random_drafter(target, folder / "drafter")
    options = ["--dtype", "float32", "--threads", "1", "--max-num-seqs", "8"]
    options += ["--speculation", "always", "--drafter", str(drafter), str(target)]
    with own_server(*options) as (address, _):
        yield address


def random_format(dice: random.Random) -> dict[str, Any]:
    match dice.choice(["schema", "schema", "schema", "object", "regex"]):
        case "object":
            return {"response_format": {"type": "json_object"}}
        case "regex":
            return {"structured_outputs": {"regex": dice.choice(PATTERNS)}}
        case _:
            schema = random_schema(dice)
            try:
                normalized(schema)
            except GrammarError:
                return random_format(dice)
            form = {"name": "random", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": form}}


def random_body(number: int) -> dict[str, Any]:
    dice = random.Random(number)
    return random_format(dice) | {
        "model": "target",
        "messages": [{"role": "user", "content": "the falcon flies" * dice.randint(1, 3)}],
        "stream": True,
        "temperature": dice.choice([0, 0.7, 1, 1.5]),
        "seed": number,
        "max_tokens": 160,
        "logprobs": True,
    }


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, list[str], str]:
    """Text, tokens and finish reason."""
    text, tokens, reason = "", [], ""
    async with client.stream("POST", "/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            text += choice["delta"].get("content") or ""
            tokens += [entry["token"] for entry in (choice["logprobs"] or {}).get("content", [])]
            reason = choice["finish_reason"] or reason
    return text, tokens, reason


async def run_all(address: str, bodies: list[dict[str, Any]]) -> list[tuple[str, list[str], str]]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def run(body: dict[str, Any]) -> tuple[str, list[str], str]:
        async with gate:
            return await stream(client, body)

    async with httpx.AsyncClient(base_url=address, timeout=300) as client:
        return list(await asyncio.gather(*map(run, bodies)))


async def usages(client: httpx.AsyncClient) -> list[tuple[int, int]]:
    """Prompt and completion tokens of all ways to ask, whole and streamed."""
    text = {"model": "target", "max_tokens": 24, "temperature": 0.8, "seed": 3}
    chat = text | {"messages": [{"role": "user", "content": "the falcon"}]}
    found = []
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"n": 3}),
        ("/v1/chat/completions", chat | {"stop": "e", "logprobs": True}),
        ("/v1/completions", text | {"prompt": ["the falcon", "flies"], "n": 2, "echo": True}),
    ):
        whole = (await client.post(path, json=body)).raise_for_status().json()["usage"]
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        lines = (await client.post(path, json=streamed)).raise_for_status().text.splitlines()
        last = json.loads([line for line in lines if line.startswith("data: {")][-1][6:])["usage"]
        found += [(own["prompt_tokens"], own["completion_tokens"]) for own in (whole, last)]
    body = {"model": "target", "input": "the falcon", "max_output_tokens": 24}
    own = (await client.post("/v1/responses", json=body)).raise_for_status().json()["usage"]
    return [*found, (own["input_tokens"], own["output_tokens"])]


async def test_the_counters_of_a_real_engine_are_the_sums_of_all_usage(server: str) -> None:
    async with httpx.AsyncClient(base_url=server.removesuffix("/v1"), timeout=300) as client:
        before = await counters(client)
        prompts, completions = map(sum, zip(*await usages(client), strict=True))
        after = await counters(client)
    assert [then - now for now, then in zip(before, after, strict=True)] == [prompts, completions]


async def counters(client: httpx.AsyncClient) -> list[float]:
    samples = await read_metrics(client)
    return [samples[f"vllm:{kind}_tokens_total"] for kind in ("prompt", "generation")]


def validates(body: dict[str, Any], text: str) -> bool:
    if "structured_outputs" in body:
        return re.fullmatch(body["structured_outputs"]["regex"], text) is not None
    value, form = json.loads(text), body["response_format"]
    if form["type"] == "json_object":
        return isinstance(value, dict)
    return Draft202012Validator(form["json_schema"]["schema"]).is_valid(value)


async def test_all_that_is_whole_validates_and_speculation_changes_no_token(server: str) -> None:
    bodies = [random_body(number) for number in range(COUNT)]
    falcon = await run_all(server, bodies)
    plain = await run_all(server, [body | {"speculative": {"enabled": False}} for body in bodies])
    assert falcon == plain
    whole = [
        (body, text)
        for body, (text, _, reason) in zip(bodies, falcon, strict=True)
        if reason == "stop"
    ]
    assert len(whole) > COUNT / 2
    for body, text in whole:
        assert validates(body, text), text
