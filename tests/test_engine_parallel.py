"""A target split over ranks gives what it gives whole, with speculation and without."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from engine_pairs import Proposals, ids_of, run
from fakes import save_random_drafter, save_random_target
from tiny_chat import make_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from drafter.config import DrafterError
from engine import LLM, loading, ranks
from engine.config import EngineConfig
from engine.loading import load_engine
from engine.messages import Grammar, RequestOutput, SamplingParams, Submit
from engine.pretrained import TargetError
from engine.rows import causal_rows
from engine.sharding import check_split
from engine.target import load_target

# Ranks on one GPU are refused, and so is a CPU beside it.
pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="needs a machine without an accelerator"
)
GREEDY = SamplingParams(temperature=0.0)
SAMPLED = SamplingParams(temperature=0.9, seed=5)
CONTEXT = 512
SIZES = {
    "vocab_size": 64,  # more than the tokenizer knows
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen": Qwen2Config(**SIZES, tie_word_embeddings=True),  # with biases
}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"sampling": GREEDY},
    "sampled": {"sampling": SAMPLED},
    "truncated": {"sampling": SamplingParams(temperature=1.1, top_p=0.8, top_k=9, seed=6)},
    "penalties": {
        "sampling": SamplingParams(
            temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.4, logit_bias={9: 2.0}
        )
    },
    "scores": {"sampling": SAMPLED, "logprobs": 3, "prompt_logprobs": 2},
    "grammar": {"sampling": SAMPLED, "grammar": Grammar("regex", "(ab|cd)+ [e-z]{30}")},
    "prediction": {"sampling": GREEDY, "prediction_ids": [4, 5, 6, 7] * 8},
    "stop": {"sampling": SAMPLED, "stop_token_ids": [1, 8, 9]},
}


def submit(number: int = 0, **changes: Any) -> Submit:
    fields = {"max_tokens": 40, "sampling": GREEDY, "stop_token_ids": [], **changes}
    prompt = [(7 * number + 3 * i) % 30 + 2 for i in range(6 + 3 * number)]
    return Submit(**({"request_id": str(number), "prompt_ids": prompt} | fields))


class Pair:
    """One rank that decodes plainly, and two ranks that speculate, told what to propose."""

    def __init__(self, config: PretrainedConfig, folder: Path) -> None:
        self.folder = save_random_target(config, folder)
        make_tokenizer().save_pretrained(folder)
        by_model = config.model_type == "qwen2"  # a draft model, which is not split: itself
        drafter = folder if by_model else save_random_drafter(folder, folder / "drafter")
        sizes: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 3}
        self.one = load_engine(EngineConfig(model=str(folder), speculation="off", **sizes))
        self.llm = LLM(folder, drafter, tensor_parallel_size=2, speculation="always", **sizes)
        self.two = self.llm.engine
        self.proposals = Proposals(self.two)

    def outputs(self, request: Submit) -> list[list[RequestOutput]]:
        """Of one rank, and of two with speculation and without."""
        plain = run(self.one, request)
        self.proposals.answer = ids_of(plain)
        without = msgspec.structs.replace(request, speculative=False)
        return [plain, run(self.two, request), run(self.two, without)]


@pytest.mark.parametrize(
    ("config", "size", "reason"),
    [
        (CONFIGS["llama"], 3, "3 does not divide the 2 key-value heads of llama: use one of 1, 2"),
        (GPT2Config(n_layer=1), 2, "no tensor-parallel plan for gpt2"),
    ],
)
def test_what_cannot_be_split_is_refused(config: PretrainedConfig, size: int, reason: str) -> None:
    with pytest.raises(TargetError, match=reason):
        check_split(EngineConfig(model="", tensor_parallel_size=size), config)


def test_a_gpu_is_needed_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(TargetError, match="each rank needs a GPU; torch sees 1"):
        check_split(EngineConfig(model="", tensor_parallel_size=2), CONFIGS["llama"])


@torch.inference_mode()
def test_the_rows_of_a_forward_do_not_show_in_the_sums_of_three_ranks(tmp_path: Path) -> None:
    """In bfloat16 every other order of three numbers shows."""
    sizes = {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 3}
    folder = save_random_target(LlamaConfig(**SIZES | sizes), tmp_path)
    target = load_target(
        EngineConfig(model=str(folder), dtype="bfloat16", tensor_parallel_size=3, max_num_seqs=1)
    )
    try:
        ids = torch.arange(32) + 2
        features = [
            target.forward(ids[:count], causal_rows(0, 0, count, target.device)).features[:16]
            for count in (16, 20, 24, 32)
        ]
    finally:
        target.close()
    for others in features[1:]:
        assert torch.equal(others, features[0])


def test_a_rank_that_ends_while_it_loads_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "COMMAND", (sys.executable, "-c", ""))
    folder = save_random_target(CONFIGS["llama"], tmp_path)
    with pytest.raises(TargetError, match="rank 1 of 2 ended while it was loading"):
        load_engine(EngineConfig(model=str(folder), tensor_parallel_size=2))


def test_an_engine_that_cannot_be_made_leaves_no_rank_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    target = SimpleNamespace(vocab_size=64, device="cpu", close=lambda: closed.append(True))
    monkeypatch.setattr(loading, "load_target", lambda config: target)
    with pytest.raises(DrafterError):
        load_engine(EngineConfig(model="", drafter=str(tmp_path)))
    assert closed


@pytest.fixture(scope="module", params=CONFIGS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    pair = Pair(CONFIGS[request.param], tmp_path_factory.mktemp("models") / request.param)
    yield pair
    pair.llm.close()


def test_greedy_ids_are_transformers_own(pair: Pair) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair.folder, dtype=torch.float32).eval()
    ids = torch.tensor([submit().prompt_ids])
    own = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=1,
    )
    for outputs in pair.outputs(submit()):
        assert ids_of(outputs) == own[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", REQUESTS)
def test_two_ranks_answer_as_one(pair: Pair, name: str) -> None:
    plain, falcon, without = pair.outputs(submit(**REQUESTS[name]))
    assert ids_of(falcon) == ids_of(without) == ids_of(plain)
    assert falcon[-1].finish_reason == without[-1].finish_reason == plain[-1].finish_reason
    for kind in ("logprobs", "prompt_logprobs"):
        expected = [entry for output in plain for entry in getattr(output, kind)]
        for outputs in (falcon, without):
            scores = [entry for output in outputs for entry in getattr(output, kind)]
            assert [entry.top_ids for entry in scores] == [entry.top_ids for entry in expected]
            for own, other in zip(scores, expected, strict=True):
                assert own.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert sum(output.accepted for output in falcon) > 0
    assert not any(output.drafted for output in without)


def test_company_chunks_and_cached_prefixes_change_nothing(pair: Pair) -> None:
    """More requests than slots, some with a prompt of several chunks, some sharing a prefix."""
    long = [(5 * i) % 29 + 3 for i in range(400)]
    prompts = [long, [*long[:300], 4], [6, 7], long[:350], [6, 7, 8], long[:120], long[:121]]
    samplings = (GREEDY, SAMPLED)
    requests = [
        submit(i, prompt_ids=prompt, sampling=samplings[i % 2]) for i, prompt in enumerate(prompts)
    ]
    expected = {request.request_id: ids_of(run(pair.one, request)) for request in requests}
    given: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        pair.two.submit(request)
    cached = 0
    while pair.two.has_work:
        report = pair.two.step()
        cached += report.cached_tokens
        for output in report.outputs:
            given[output.request_id] += output.token_ids
    assert given == expected
    assert cached > 300


def test_a_rank_holds_its_own_heads_alone(pair: Pair) -> None:
    whole, share = pair.one.target.slots.tensor, pair.two.target.slots.tensor
    assert 2 * share.numel() == whole.numel()
    assert share.shape[3] == 1
    weight: Any = pair.two.target.model.model.layers[0].mlp.down_proj.weight
    assert weight.to_local().shape == (32, 32)


def test_a_second_group_in_one_process_is_refused(pair: Pair) -> None:
    with pytest.raises(TargetError, match="close what has it first"):
        load_engine(EngineConfig(model=str(pair.folder), tensor_parallel_size=2))
