"""The embedded pair, as it is shipped: it fits, it speeds up, and it changes no token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from benchmarks.own_server import own_server
from engine.config import Dtype, EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import SamplingParams, Submit

DEMO = Path(__file__).parent.parent / "models" / "demo"
PROMPTS = [
    "A farmer has 12 hens and each lays 5 eggs a week. How many eggs are there in 3 weeks?",
    "Write a Python function that returns the sum of a list of numbers.",
    "Hello! What do you like to do at the weekend?",
]
SHIPPED_BYTES = 64_000_000


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "target")
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPTS
    ]


def engine(dtype: Dtype, drafter: bool) -> Engine:
    folder = str(DEMO / "drafter") if drafter else None
    return load_engine(
        EngineConfig(
            model=str(DEMO / "target"),
            drafter=folder,
            dtype=dtype,
            max_model_len=512,
            max_num_seqs=1,
            speculation="auto" if drafter else "off",
        )
    )


def answers(
    engine: Engine, prompts: list[list[int]], sampling: SamplingParams
) -> tuple[list[list[int]], float]:
    """Ids of every answer, and tau: tokens per step."""
    ids: list[list[int]] = []
    steps = 0
    for prompt in prompts:
        engine.submit(Submit("a", prompt, 64, sampling, [1]))
        ids.append([])
        while engine.has_work:
            ids[-1] += engine.step().outputs[0].token_ids
            steps += 1
    return ids, sum(map(len, ids)) / steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_speculation_is_fast_and_changes_no_token(dtype: Dtype, prompts: list[list[int]]) -> None:
    plain, falcon = engine(dtype, drafter=False), engine(dtype, drafter=True)
    for sampling in (SamplingParams(temperature=0.0), SamplingParams(temperature=0.7, seed=5)):
        expected, one = answers(plain, prompts, sampling)
        found, tau = answers(falcon, prompts, sampling)
        assert found == expected
        assert one == 1.0
        assert tau > 2.0


def test_pair_is_small_enough_to_ship() -> None:
    files = [file for file in DEMO.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) < SHIPPED_BYTES
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".pth", ".pkl"}]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with own_server() as (address, _):
        yield address


def test_openai_client_streams_what_it_gets_whole(server: str) -> None:
    with openai.OpenAI(base_url=server, api_key="none") as client:
        ask = {
            "model": "falcon-demo",
            "messages": [{"role": "user", "content": PROMPTS[0]}],
            "temperature": 0.8,
            "seed": 3,
            "max_tokens": 48,
        }
        whole = client.chat.completions.create(**ask)
        with client.chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    first, second = whole.usage, chunks[-1].usage
    assert first is not None
    assert second is not None
    assert second.completion_tokens == first.completion_tokens
    assert second.prompt_tokens_details is not None  # the second one finds its prompt cached
    assert second.prompt_tokens_details.cached_tokens == first.prompt_tokens - 1


def test_a_predicted_answer_is_the_same_and_its_steps_are_told(server: str) -> None:
    """The prediction is the answer with its first line gone and its last words changed."""
    with openai.OpenAI(base_url=server, api_key="none") as client:
        ask: dict[str, Any] = {
            "model": "falcon-demo",
            "messages": [{"role": "user", "content": PROMPTS[1]}],
            "temperature": 0,
            "max_tokens": 96,
        }
        answer = client.chat.completions.create(**ask).choices[0].message.content or ""
        edited = answer.partition("\n")[2][:-20] + " and so on"
        ask["prediction"] = {"type": "content", "content": edited}
        reply = client.chat.completions.create(**ask, extra_body={"speculative": {"stats": True}})
        told = {"speculative": {"stats": True, "trace": True}}
        with client.chat.completions.create(**ask, stream=True, extra_body=told) as stream:
            chunks = [chunk.model_dump() for chunk in stream]
    assert reply.choices[0].message.content == answer
    assert reply.usage is not None
    details = reply.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens or 0) > reply.usage.completion_tokens / 2
    steps = [chunk["falcon"] for chunk in chunks if "falcon" in chunk]
    tokens = [token for step in steps for token in step["tokens"]]
    assert "".join(token["text"] for token in tokens).startswith(answer)
    assert {"predicted", "bonus"} <= {token["source"] for token in tokens}
    figures = chunks[-1]["metrics"]["speculative_decoding"]
    assert figures["num_accepted_draft_tokens"] == sum(t["source"] != "bonus" for t in tokens)
    assert figures["num_draft_tokens"] == sum(
        len(step["tree"]["tokens"]) - 1 - step["tree"]["root"] for step in steps
    )


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_speculation_changes_no_response(server: str, temperature: float) -> None:
    ask: dict[str, Any] = {"model": "falcon-demo", "input": PROMPTS[1], "max_output_tokens": 32}
    ask |= {"temperature": temperature, "extra_body": {"seed": 3}}
    plain = {"seed": 3, "speculative": {"enabled": False}}
    with openai.OpenAI(base_url=server, api_key="none") as client:
        expected = client.responses.create(**ask | {"extra_body": plain}).output_text
        with client.responses.stream(**ask) as stream:
            pieces = [e.delta for e in stream if e.type == "response.output_text.delta"]
    assert "".join(pieces) == expected


def test_card_lists_the_files_that_the_script_reads() -> None:
    card, script = (DEMO / "README.md").read_text(), (DEMO / "build.py").read_text()
    mixture = script[script.index("MIXTURE = {") : script.index("# Rows of each file")]
    read = set(re.findall(r'^    "(\w+)":', mixture, re.MULTILINE))
    listed = set(re.findall(r"^\| (\w+) \| .*github.* \|$", card, re.MULTILINE))
    assert listed == read
