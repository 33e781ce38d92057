"""Scoring over HTTP with a real engine, in the requests that lm-evaluation-harness sends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fakes import save_random_drafter
from tiny_chat import save_chat_target
from transformers import AutoModelForCausalLM

from benchmarks.own_server import own_server

pytestmark = pytest.mark.slow
CONTEXT = [4 + (5 * i) % 26 for i in range(40)]
TASKS = [(CONTEXT, [9, 8, 7]), (CONTEXT, [20]), (CONTEXT[:7], [5] * 30), ([6], [11, 12])]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def http(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    drafter = save_random_drafter(target, tmp_path_factory.mktemp("drafter"))
    options = ("--drafter", str(drafter), "--dtype", "float32", "--speculation", "always")
    with (
        own_server(str(target), *options, "--threads", "1") as (address, _),
        httpx.Client(base_url=address.removesuffix("/v1"), timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def model(target: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()


def complete(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    model = http.get("/v1/models").json()["data"][0]["id"]
    body = {"model": model, "temperature": 0, "seed": 1234} | fields
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choices: list[dict[str, Any]] = answer.json()["choices"]
    return choices


@torch.inference_mode()
def teacher_forced(model: Any, context: list[int], ending: list[int]) -> tuple[float, bool]:
    """The ending's log-probability by transformers, and whether it is the greedy one."""
    table = model(torch.tensor([context + ending])).logits[0].log_softmax(-1)
    rows = table[len(context) - 1 : -1]
    own = rows.gather(-1, torch.tensor(ending)[:, None])[:, 0]
    return float(own.sum()), bool((rows.max(-1).values == own).all())


def read(choice: dict[str, Any], context: int, generated: int) -> tuple[float, bool]:
    """What the harness reads from a choice: the ending's sum, and whether it is greedy."""
    ending = slice(context, len(choice["logprobs"]["tokens"]) - generated)
    values = choice["logprobs"]["token_logprobs"][ending]
    best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][ending]]
    return sum(values), values == best


@pytest.mark.parametrize("generated", [0, 1])
@pytest.mark.parametrize("enabled", [True, False])
def test_endings_are_scored_as_transformers_scores_them(
    http: httpx.Client, model: Any, generated: int, enabled: bool
) -> None:
    prompts = [context + ending for context, ending in TASKS]
    choices = complete(
        http,
        prompt=prompts,
        max_tokens=generated,
        logprobs=1,
        echo=True,
        speculative={"enabled": enabled},
    )
    for choice, (context, ending) in zip(choices, TASKS, strict=True):
        assert len(choice["logprobs"]["tokens"]) == len(context + ending) + generated
        total, is_greedy = teacher_forced(model, context, ending)
        assert read(choice, len(context), generated) == (pytest.approx(total, abs=1e-4), is_greedy)


def test_a_greedy_answer_is_scored_as_greedy_with_the_values_it_was_given(
    http: httpx.Client,
) -> None:
    ids = http.post("/tokenize", json={"prompt": "the falcon flies"}).json()["tokens"]
    said = complete(http, prompt=ids, max_tokens=20, logprobs=1, ignore_eos=True)[0]
    text = "the falcon flies" + said["text"]
    whole = complete(http, prompt=ids, max_tokens=20, logprobs=1, ignore_eos=True, echo=True)[0]
    assert whole["text"] == text
    assert whole["logprobs"]["tokens"][len(ids) :] == said["logprobs"]["tokens"]
    names = said["logprobs"]["tokens"]
    answer = http.post("/tokenize", json={"prompt": "".join(names)}).json()["tokens"]
    assert len(answer) == len(names)
    again = complete(http, prompt=ids + answer, max_tokens=0, logprobs=1, echo=True)[0]
    for column in ("token_logprobs", "top_logprobs"):
        scored = again["logprobs"][column][len(ids) :]
        for own, other in zip(scored, said["logprobs"][column], strict=True):
            assert own == pytest.approx(other, abs=1e-4)
    assert again["logprobs"]["token_logprobs"][1 : len(ids)] == pytest.approx(
        whole["logprobs"]["token_logprobs"][1 : len(ids)], abs=1e-4
    )
    assert read(again, len(ids), 0)[1]
