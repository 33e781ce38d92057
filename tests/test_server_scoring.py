"""Scoring over HTTP with a real engine, in the requests that lm-evaluation-harness sends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import save_random_drafter
from tiny_chat import save_chat_target
from transformers import AutoModelForCausalLM

from engine.client import WORKER_COMMAND
from engine.config import EngineConfig
from server.settings import Address, Settings
from tests.server_harness import Running, serving

pytestmark = pytest.mark.slow
CONTEXT = [4 + (5 * i) % 26 for i in range(40)]
TASKS = [(CONTEXT, [9, 8, 7]), (CONTEXT, [20]), (CONTEXT[:7], [5] * 30), ([6], [11, 12])]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def server(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("drafter")
    config = EngineConfig(
        model=str(target),
        drafter=str(save_random_drafter(target, folder)),
        dtype="float32",
        device="cpu",
        threads=1,
        max_num_seqs=4,
        speculation="always",
    )
    settings = Settings(config, ("tiny",), Address("127.0.0.1", 0))
    with serving(settings, WORKER_COMMAND, folder / "log", start_seconds=120.0) as running:
        yield running


@pytest.fixture(scope="module")
def model(target: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()


def complete(server: Running, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "tiny", "temperature": 0, "seed": 1234} | fields
    answer = server.post(body, "/v1/completions")
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
    server: Running, model: Any, generated: int, enabled: bool
) -> None:
    prompts = [context + ending for context, ending in TASKS]
    choices = complete(
        server,
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
    server: Running,
) -> None:
    ids = server.post({"prompt": "the falcon flies"}, "/tokenize").json()["tokens"]
    said = complete(server, prompt=ids, max_tokens=20, logprobs=1, ignore_eos=True)[0]
    text = "the falcon flies" + said["text"]
    whole = complete(server, prompt=ids, max_tokens=20, logprobs=1, ignore_eos=True, echo=True)[0]
    assert whole["text"] == text
    assert whole["logprobs"]["tokens"][len(ids) :] == said["logprobs"]["tokens"]
    names = said["logprobs"]["tokens"]
    answer = server.post({"prompt": "".join(names)}, "/tokenize").json()["tokens"]
    assert len(answer) == len(names)
    again = complete(server, prompt=ids + answer, max_tokens=0, logprobs=1, echo=True)[0]
    for column in ("token_logprobs", "top_logprobs"):
        scored = again["logprobs"][column][len(ids) :]
        for own, other in zip(scored, said["logprobs"][column], strict=True):
            assert own == pytest.approx(other, abs=1e-4)
    assert again["logprobs"]["token_logprobs"][1 : len(ids)] == pytest.approx(
        whole["logprobs"]["token_logprobs"][1 : len(ids)], abs=1e-4
    )
    assert read(again, len(ids), 0)[1]
