"""Prompt lookup: what it proposes, and that no token of an answer depends on it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter
from hypothesis import given
from hypothesis import strategies as st
from text_target import save_text_target

from engine.config import Dtype, EngineConfig, NGrams, Speculation
from engine.engine import Engine
from engine.loading import describe, load_engine
from engine.messages import Grammar, RequestOutput, SamplingParams, Submit
from engine.prompt_lookup import prompt_lookup

GREEDY = SamplingParams(temperature=0.0)
TOKENS = st.lists(st.integers(0, 3), max_size=50)
LENGTH = 40


def after(text: list[int], count: int = 4, **ngrams: int) -> list[int]:
    return prompt_lookup(text, NGrams(**ngrams)).propose([], count).tokens


def test_what_followed_the_latest_earlier_ngram_is_proposed() -> None:
    assert after([1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 8, 1, 2, 3]) == [6, 7, 8, 1]


@pytest.mark.parametrize(("longest", "expected"), [(3, [11, 12]), (2, [21, 22]), (1, [31, 32])])
def test_the_longest_ngram_decides(longest: int, expected: list[int]) -> None:
    """Sought where the text has just left what followed the latest "1 2"."""
    text = [1, 2, 3, 11, 12, 9, 2, 3, 21, 22, 8, 3, 31, 32, 1, 2, 5, 6, 1, 2, 3]
    assert after(text, 2, prompt_lookup_max=longest) == expected


def test_ngrams_that_are_too_short_are_none() -> None:
    text = [1, 2, 3, 4, 9, 2, 3]
    assert after(text, prompt_lookup_min=2) == [4, 9, 2, 3]
    assert after(text, prompt_lookup_min=3) == []
    assert after([1, 2, 3], 4) == []


def test_a_place_is_kept_as_long_as_it_is_right() -> None:
    """Though "5 1" came again later, behind something else."""
    text = [5, 1, 2, 3, 4, 8, 7, 5, 1, 9, 6, 5, 1, 2]
    assert after(text) == [3, 4, 8, 7]
    assert after([*text, 3, 4]) == [8, 7, 5, 1]


def test_what_repeats_goes_on_so() -> None:
    assert after([1, 2, 3, 7, 7], 5) == [7] * 5
    assert after([9, 1, 2, 3, 1, 2], 7) == [3, 1, 2, 3, 1, 2, 3]


def test_no_more_is_proposed_than_allowed() -> None:
    assert after([1, 2, 3, 4, 5, 6, 1], 4, num_speculative_tokens=2) == [2, 3]
    assert after([1, 2, 3, 4, 5, 6, 1], 0) == after([1, 2, 3, 1], -1) == after([]) == []


def test_a_text_whose_ngrams_mislead_is_trusted_no_more() -> None:
    def trust(words: int) -> float:
        text = [token for i in range(words) for token in (1, 2, 100 + i)]
        return prompt_lookup([*text, 1, 2], NGrams()).propose([], 8).expected[1]

    assert trust(2) > trust(4) > trust(6)


@given(TOKENS, TOKENS, st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
def test_the_text_may_come_at_once_or_token_by_token(
    text: list[int], more: list[int], longest: int, shortest: int, limit: int
) -> None:
    ngrams = NGrams(prompt_lookup_max=longest, prompt_lookup_min=min(longest, shortest))
    one_by_one, by_parts = prompt_lookup([], ngrams), prompt_lookup(text, ngrams)
    for token in [*text, *more]:
        one_by_one.extend([token])
    by_parts.extend(more)
    found = by_parts.propose([], limit).tokens
    assert found == one_by_one.propose([], limit).tokens
    assert len(found) in (0, limit)
    whole = [*text, *more]
    starts = range(len(whole))
    assert not found or any(([*whole[at:], *found])[: len(found)] == found for at in starts)
    assert (
        len(found) == limit
        or whole[-1:] == []
        or ngrams.prompt_lookup_min > 1
        or (whole[-1] not in whole[:-1])
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    target = save_text_target(tmp_path_factory.mktemp("target"))
    return target, save_random_drafter(target, tmp_path_factory.mktemp("drafter"), SMALL_TREE)


def load(
    target: Path, dtype: Dtype, speculation: Speculation, num_slots: int = 3, **options: Any
) -> Engine:
    return load_engine(
        EngineConfig(
            model=str(target),
            dtype=dtype,
            max_num_seqs=num_slots,
            speculation=speculation,
            deterministic=dtype == "bfloat16",
            **options,
        )
    )


def requests() -> dict[str, Submit]:
    """With prompts that repeat themselves, and all that changes what is picked."""
    dice = random.Random(3)
    phrase = [dice.randrange(4, 30) for _ in range(9)]
    prompt = [*phrase, 40, *phrase[2:], 41, *phrase[:5]]
    warm = SamplingParams(temperature=0.8, seed=5)
    likely = dict.fromkeys(phrase, 4.0)
    settings: dict[str, dict[str, Any]] = {
        "greedy": {},
        "looping": {"sampling": SamplingParams(temperature=0.0, logit_bias={7: 100.0})},
        "sampled": {"sampling": SamplingParams(temperature=1.0, seed=4, logit_bias=likely)},
        "again": {"sampling": SamplingParams(temperature=1.0, seed=4, logit_bias=likely)},
        "truncated": {"sampling": msgspec.structs.replace(warm, top_p=0.8, top_k=5, min_p=0.1)},
        "penalised": {
            "sampling": msgspec.structs.replace(
                warm, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2
            )
        },
        "logprobs": {"logprobs": 3, "prompt_logprobs": 0},
        "stopped": {"stop_token_ids": phrase},
        "patient": {
            "stop_token_ids": phrase,
            "sampling": SamplingParams(temperature=0.0, min_tokens=20),
        },
        "grammar": {"grammar": Grammar("regex", "(ab|cd){30}"), "sampling": warm},
        "json": {"grammar": Grammar("json_object")},
        "short": {"max_tokens": 2},
        "prompt only": {"max_tokens": 0},
        "replayed": {"output_ids": phrase},
        "predicted": {"prediction_ids": phrase * 4},
        "plain": {"speculative": False},
        "traced": {"trace": True},
    }
    usual = {"max_tokens": LENGTH, "sampling": GREEDY, "stop_token_ids": []}
    return {name: Submit(name, prompt, **(usual | own)) for name, own in settings.items()}


def run(engine: Engine, *submits: Submit) -> dict[str, list[RequestOutput]]:
    found: dict[str, list[RequestOutput]] = {submit.request_id: [] for submit in submits}
    for submit in submits:
        engine.submit(submit)
    while engine.has_work:
        for output in engine.step().outputs:
            found[output.request_id].append(output)
    return found


def told(outputs: list[RequestOutput]) -> tuple[list[int], str | None]:
    return [token for o in outputs for token in o.token_ids], outputs[-1].finish_reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_answer_depends_on_prompt_lookup(folders: tuple[Path, Path], dtype: Dtype) -> None:
    """Alone and among others, which find each other's prompts in their cache."""
    asked = requests()
    plain = load(folders[0], dtype, "off", 1)
    always, auto = load(folders[0], dtype, "always"), load(folders[0], dtype, "auto")
    expected = {name: run(plain, submit)[name] for name, submit in asked.items()}
    alone = {name: run(auto, submit)[name] for name, submit in asked.items()}
    together = run(always, *asked.values())
    for found in (alone, together, run(auto, *asked.values())):
        for name, outputs in found.items():
            assert told(outputs) == told(expected[name]), name
            scores = [score.logprob for o in outputs for score in o.logprobs]
            own = [score.logprob for o in expected[name] for score in o.logprobs]
            assert scores == pytest.approx(own, abs=1e-4 if dtype == "float32" else 0.0)
            check_sources(outputs)
    assert sum(o.accepted for o in together["looping"]) > LENGTH // 2
    assert not any(o.drafted for o in together["plain"])


def check_sources(outputs: list[RequestOutput]) -> None:
    """Only a client's own prediction counts as predicted."""
    for output in outputs:
        is_predicting = output.request_id == "predicted"
        assert is_predicting or (output.predicted, output.rejected_predicted) == (0, 0)
        assert is_predicting or "predicted" not in output.sources
        assert output.accepted == sum(source != "bonus" for source in output.sources)
        assert output.trace is None or output.trace.passes == 0


@pytest.mark.parametrize(
    ("prompt", "prediction", "source"),
    [([3, 4, 5], [7] * 40, "predicted"), ([7] * 9, [8, 9] * 20, "drafted")],
)
def test_the_text_that_promises_more_is_verified(
    folders: tuple[Path, Path], prompt: list[int], prediction: list[int], source: str
) -> None:
    """Of two that are right the client's; never one that misleads for long."""
    engine = load(folders[0], "float32", "always")
    loop = SamplingParams(temperature=0.0, logit_bias={7: 100.0})
    outputs = run(engine, Submit("a", prompt, 40, loop, [], prediction_ids=prediction))["a"]
    sources = [source for output in outputs for source in output.sources]
    assert set(sources) == {source, "bonus"}
    assert sources.count("bonus") <= 4


def test_after_a_failed_step_neighbours_are_looked_up_again(folders: tuple[Path, Path]) -> None:
    """The row of a draft that is not finite costs its step, and a request's error only itself."""
    engine = load(folders[0], "float32", "always")
    loop = SamplingParams(temperature=0.0, logit_bias={7: 100.0})
    original, planted = engine.decoder.verify, list[bool]()

    def verify(drafts, sequences):  # type: ignore[no-untyped-def]
        verdict = original(drafts, sequences)
        for b, sequence in enumerate(sequences):
            if sequence.request.request_id == "bad" and sequence.num_output > 4:
                planted.append(True)
                verdict.logits[b] = torch.nan
        return verdict

    engine.decoder.verify = verify  # type: ignore[method-assign]
    found = run(engine, Submit("bad", [5, 6], 40, GREEDY, []), Submit("good", [7], 99, loop, []))
    assert planted
    assert found["bad"][-1].finish_reason == "error"
    assert told(found["good"]) == ([7] * 99, "length")
    assert found["good"][-1].drafted


def test_beside_a_drafter_it_takes_measured_costs(folders: tuple[Path, Path]) -> None:
    target, drafter = folders
    with_drafter = load(target, "float32", "auto", drafter=str(drafter))
    assert with_drafter.policy.ngrams is not None
    assert load(target, "float32", "always", drafter=str(drafter)).policy.ngrams is None
    assert load(target, "float32", "off").policy.ngrams is None
    assert load(target, "float32", "auto", prompt_lookup=None).policy.ngrams is None


def test_what_drafts_is_told(folders: tuple[Path, Path]) -> None:
    for options, looks_up, plan in (
        ({}, True, "prompt lookup by n-grams of 3 to 1 tokens"),
        ({"prompt_lookup": NGrams(prompt_lookup_max=5)}, True, "n-grams of 5 to 1 tokens"),
        ({"prompt_lookup": None}, False, "none"),
        ({"drafter": str(folders[1])}, True, "up to 12 nodes"),
        ({"drafter": str(folders[1])}, True, "passes; prompt lookup"),
        ({"drafter": str(folders[1]), "prompt_lookup": None}, False, "up to 12 nodes"),
    ):
        config = EngineConfig(model=str(folders[0]), dtype="float32", **options)  # type: ignore[arg-type]
        ready = describe(load_engine(config), config)
        assert ready.looks_up is looks_up
        assert plan in ready.plan


@pytest.mark.parametrize(
    "sizes", [{"prompt_lookup_max": 17}, {"prompt_lookup_min": 4}, {"num_speculative_tokens": 0}]
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(sizes))} {next(iter(sizes.values()))}"):
        NGrams(**sizes)
