"""Bias, bans, penalties, log-probabilities: as defined, and the same with speculation on or off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from engine_pairs import Engines, ids_of, run
from fakes import save_random_drafter
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.drafts import Drafts
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import SamplingParams, Submit
from engine.noise import gumbel, hash_tokens, position_keys
from engine.processors import Processors, check_ids
from engine.sampling import Sampler, logprobs
from engine.seeds import choice_seed
from engine.sequence import Sequence
from tree.topology import Tree

CPU = torch.device("cpu")
PROMPT = [(5 * i + 3) % 60 + 2 for i in range(17)]
STOPS = [3, 11, 17, 29, 41, 53]
CHAIN = Tree.from_paths([[0] * depth for depth in range(1, 8)])
OPTIONS: dict[str, dict[str, Any]] = {
    "logit_bias": {"logit_bias": {7: 6.0, 9: -100.0, 30: 7.5, 41: 5.0}},
    "min_tokens": {"min_tokens": 9, "stop_token_ids": STOPS},
    "stop_token_ids": {"stop_token_ids": STOPS[3:]},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "frequency_penalty": {"frequency_penalty": 0.8},
    "presence_penalty": {"presence_penalty": -1.1},
    "logprobs": {"logprobs": 3},
}
COMBINATIONS = [(name,) for name in OPTIONS] + list(itertools.combinations(OPTIONS, 2))
ALL: dict[str, Any] = {k: v for option in OPTIONS.values() for k, v in option.items()}


def request(prompt: list[int] = PROMPT, **changes: Any) -> Submit:
    """Greedy for 24 tokens, unless told otherwise; names of `SamplingParams` go there."""
    names = SamplingParams.__struct_fields__
    own = {name: changes.pop(name) for name in names if name in changes}
    sampling = SamplingParams(**({"temperature": 0.0, "seed": 5} | own))
    fields = {"max_tokens": 24, "stop_token_ids": []} | changes
    return Submit("a", prompt, sampling=sampling, **fields)


@pytest.fixture(scope="module")
def engines(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tiny_llama, tmp_path_factory.mktemp("drafter"))


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_speculation_changes_no_token_with_any_two_parameters(
    engines: Engines, name: str, temperature: float
) -> None:
    accepted = []
    for names in COMBINATIONS:
        own: dict[str, Any] = {k: v for n in names for k, v in OPTIONS[n].items()}
        outputs = engines.check(name, request(temperature=temperature, **own))
        accepted += [output.accepted for output in outputs]
    assert max(accepted) >= 3, "the walk must go down the tree for this to mean anything"
    assert sum(accepted) > len(accepted) / 2


def test_speculation_changes_no_token_with_all_parameters_and_truncation(engines: Engines) -> None:
    for seed in range(4):
        truncation = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.01}
        engines.check("float32", request(**(ALL | truncation), seed=seed, max_tokens=40))


def naive(
    logits: list[float],
    params: SamplingParams,
    prompt: list[int],
    output: list[int],
    stops: list[int],
) -> list[float]:
    """The definition, one token at a time."""
    scores = []
    for token, score in enumerate(logits):
        score += params.logit_bias.get(token, 0.0)
        if len(output) < params.min_tokens and token in stops:
            score = -math.inf
        if token in prompt or token in output:
            factor = params.repetition_penalty
            score = score / factor if score > 0 else score * factor
        score -= params.frequency_penalty * output.count(token)
        score -= params.presence_penalty * (token in output)
        scores.append(score)
    return scores


tokens = st.lists(st.integers(0, 11), max_size=9)
penalty = st.sampled_from([0.0, -2.0, 0.5, 2.0])


@settings(max_examples=150)
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=12, max_size=12),
    prompt=tokens.filter(bool),
    final=tokens,
    path=tokens,
    stops=st.lists(st.integers(0, 11), max_size=3),
    params=st.builds(
        SamplingParams,
        logit_bias=st.dictionaries(st.integers(0, 11), st.floats(-100, 100, width=32)),
        min_tokens=st.integers(0, 20),
        repetition_penalty=st.sampled_from([1.0, 0.5, 1.7, 2.0]),
        frequency_penalty=penalty,
        presence_penalty=penalty,
    ),
)
def test_processors_do_what_their_definition_says(
    logits: list[float],
    prompt: list[int],
    final: list[int],
    path: list[int],
    stops: list[int],
    params: SamplingParams,
) -> None:
    submit = Submit("a", prompt, 99, params, stops)
    expected = naive(logits, params, prompt, final + path, stops)
    sequence = Sequence(submit, 0)
    sampler = Sampler(12, CPU)
    for count in range(len(final) + 1):  # however the final tokens arrive
        sequence.ids = prompt + final[:count]
        sampler.adjust(torch.tensor([[logits]]), [sequence], [[len(prompt) + count]], [[]])
    at = len(prompt) + len(final) + len(path)
    (row,) = sampler.adjust(torch.tensor([[logits]]), [sequence], [[at]], [path])[0]
    assert row.dtype == torch.float32
    assert row.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_equal_a_naive_loop_over_transformers(
    engines: Engines, model: Any, temperature: float
) -> None:
    submit = request(**ALL, temperature=temperature)
    output: list[int] = []
    while len(output) < submit.max_tokens and not (output and output[-1] in STOPS):
        ids = PROMPT + output
        logits = model(torch.tensor([ids])).logits[0, -1].tolist()
        row = torch.tensor(naive(logits, submit.sampling, PROMPT, output, submit.stop_token_ids))
        if temperature:
            row = (
                row / temperature + gumbel(position_keys([5], [len(ids)]), hash_tokens(64, CPU))[0]
            )
        output.append(int(row.argmax()))
    assert ids_of(engines.check("float32", submit)) == output


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_logprobs_are_those_of_the_unprocessed_target_at_each_token(
    engines: Engines, model: Any, temperature: float
) -> None:
    submit = request(**(ALL | {"logprobs": 5, "stop_token_ids": []}), temperature=temperature)
    outputs = engines.check("float32", submit)
    ids, entries = ids_of(outputs), [entry for output in outputs for entry in output.logprobs]
    logits = model(torch.tensor([PROMPT + ids])).logits[0, len(PROMPT) - 1 : -1]
    expected = logits.log_softmax(-1)
    best = expected.topk(5)
    own = [entry.logprob for entry in entries]
    assert own == pytest.approx(expected[range(len(ids)), ids].tolist(), abs=1e-4)
    assert [entry.top_ids for entry in entries] == best.indices.tolist()
    for entry, values in zip(entries, best.values.tolist(), strict=True):
        assert entry.top_logprobs == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("min_tokens", range(10))
def test_min_tokens_ends_anywhere_in_an_accepted_run(engines: Engines, min_tokens: int) -> None:
    """The stop id is the likeliest token everywhere: the answer ends as soon as it may."""
    own = {"logit_bias": {5: 100.0}, "stop_token_ids": [5], "min_tokens": min_tokens}
    outputs = engines.check("float32", request(**own))
    ids = ids_of(outputs)
    assert len(ids) == min_tokens + 1
    assert ids.index(5) == min_tokens
    assert outputs[-1].finish_reason == "stop"


def test_a_bias_of_100_repeats_one_token_and_of_minus_100_bans_it(engines: Engines) -> None:
    assert set(ids_of(engines.check("float32", request(logit_bias={5: 100.0})))) == {5}
    free = ids_of(engines.check("float32", request()))
    banned = dict.fromkeys(free, -100.0)
    assert not set(ids_of(engines.check("float32", request(logit_bias=banned)))) & set(free)


@pytest.fixture
def chained(tiny_llama: Path, tmp_path: Path) -> Callable[[int], Engine]:
    """An engine whose drafter always proposes one token seven times."""

    def _chained(token: int) -> Engine:
        drafter = save_random_drafter(tiny_llama, tmp_path, CHAIN)
        engine = load_engine(
            EngineConfig(
                model=str(tiny_llama), drafter=str(drafter), dtype="float32", speculation="always"
            )
        )
        original = engine.decoder.draft

        def draft(sequences: list[Sequence], *plan: Any) -> Drafts:
            drafted = original(sequences, *plan)
            drafted.tokens[:, 1:] = token
            return drafted

        engine.decoder.draft = draft  # type: ignore[method-assign]
        return engine

    return _chained


def test_a_frequency_penalty_breaks_a_loop_within_one_accepted_run(
    engines: Engines, chained: Callable[[int], Engine]
) -> None:
    """Penalties of the root's row alone would let the whole run of seven pass."""
    submit = request(logit_bias={5: 12.0}, frequency_penalty=2.0)
    expected = ids_of(run(engines.plain["float32"], submit))
    outputs = run(chained(5), submit)
    assert ids_of(outputs) == expected
    assert 2 <= expected.index(next(token for token in expected if token != 5)) < 7
    assert 2 <= outputs[0].accepted < 7


@pytest.mark.parametrize("done", range(0, 12, 3))
def test_tokens_of_an_earlier_engine_count_as_output(engines: Engines, done: int) -> None:
    submit = request(**(ALL | {"stop_token_ids": []}), temperature=0.9)
    answer = ids_of(engines.check("float32", submit))
    again = msgspec.structs.replace(submit, output_ids=answer[:done])
    assert ids_of(engines.check("float32", again)) == answer[done:]


def test_neighbours_with_other_parameters_change_no_token(engines: Engines) -> None:
    submits = [request(**OPTIONS[name]) for name in ("frequency_penalty", "min_tokens", "logprobs")]
    expected = [ids_of(run(engines.plain["float32"], submit)) for submit in submits]
    engine = engines.falcon["float32"]
    engines.proposals["float32"].answer = expected[0]
    for number, submit in enumerate(submits):
        engine.submit(msgspec.structs.replace(submit, request_id=str(number)))
    found: dict[str, list[int]] = {}
    while engine.has_work:
        for output in engine.step().outputs:
            found.setdefault(output.request_id, []).extend(output.token_ids)
    assert [found[str(number)] for number in range(3)] == expected


def test_logits_come_back_untouched_where_nobody_asks() -> None:
    logits = torch.randn(1, 1, 8, dtype=torch.bfloat16)
    sequence = Sequence(Submit("a", [1], 9, SamplingParams(), [2]), 0)
    assert Sampler(8, CPU).adjust(logits, [sequence], [[1]], [[]]) is logits
    assert sequence.processors is None


def test_blocks_of_a_draft_share_the_state_of_the_root() -> None:
    submit = Submit("a", [1], 9, SamplingParams(min_tokens=2, presence_penalty=1.0), [3])
    own = Processors(submit, 8, CPU)
    own.count([1, 2])
    rows = own.apply(torch.zeros(3, 2, 8), [2, 3], [4])
    assert torch.equal(rows[0], rows[2])
    assert rows[0, 0].tolist() == [0, 0, -1, -math.inf, -1, 0, 0, 0]
    assert rows[0, 1].tolist() == [0, 0, -1, 0, -1, 0, 0, 0]


def test_the_smallest_repetition_penalty_stays_finite() -> None:
    own = Processors(Submit("a", [1], 9, SamplingParams(repetition_penalty=1e-300), []), 4, CPU)
    own.count([1])
    assert torch.isfinite(own.apply(torch.full((1, 4), 2.0), [1], [])).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"logit_bias": {64: 1.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"output_ids": [99]}, "output ids"),
        ({"prompt": [64]}, "prompt ids"),
    ],
)
def test_ids_that_the_target_does_not_have_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_ids(request(**changes), 64)


def test_a_stop_id_that_the_target_does_not_have_is_harmless(engines: Engines) -> None:
    submit = request(stop_token_ids=[64, 5], min_tokens=3, logit_bias={5: 100.0})
    assert len(ids_of(engines.check("float32", submit))) == 4


def test_fewer_tokens_than_asked_for_are_all_that_there_are() -> None:
    (entry,) = logprobs(torch.tensor([[0.0, 1.0]]), [0], 20)
    assert entry.top_ids == [1, 0]
    assert sum(map(math.exp, entry.top_logprobs)) == pytest.approx(1)


def test_choices_have_their_own_seeds_and_the_first_keeps_the_requests() -> None:
    assert choice_seed(7, 0) == 7
    seeds = {choice_seed(seed, index) for seed in range(50) for index in range(8)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**64 for seed in seeds)
