"""Scores of prompts: the target's own, however they are computed, and nobody else's business."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter
from transformers import AutoModelForCausalLM

from engine import engine as engine_module
from engine.config import Dtype, EngineConfig, Speculation
from engine.engine import PREFILL_BUDGET, Engine
from engine.loading import load_engine
from engine.messages import (
    MAX_LOGPROBS,
    RequestOutput,
    SamplingParams,
    StepReport,
    Submit,
    TokenLogprobs,
)
from engine.rows import ROW_CLASS
from engine.speculative import MAX_CPU_ROWS
from engine.wire import MAX_FRAME_BYTES, encode_frame

GREEDY = SamplingParams(temperature=0.0)
CONTEXT = 256
PROMPT = [(7 * i + i * i) % 60 + 2 for i in range(120)]
ALONE = 1e-4  # in float32, of a whole text

Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def load(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Load:
    drafter = save_random_drafter(tiny_llama, tmp_path_factory.mktemp("drafter"), SMALL_TREE)

    def _load(
        speculation: Speculation = "always", dtype: Dtype = "float32", **options: Any
    ) -> Engine:
        return load_engine(
            EngineConfig(
                model=str(tiny_llama),
                drafter=str(drafter),
                dtype=dtype,
                speculation=speculation,
                **({"max_num_seqs": 3} | options),
            )
        )

    return _load


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@torch.inference_mode()
def teacher_forced(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [S-1,V] of what follows each token, by transformers alone."""
    table: torch.Tensor = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return table


def request(prompt: list[int] = PROMPT, name: str = "a", **changes: Any) -> Submit:
    fields = {"max_tokens": 0, "sampling": GREEDY, "stop_token_ids": [], "prompt_logprobs": 0}
    return Submit(name, prompt, **(fields | changes))


def run(engine: Engine, *requests: Submit) -> list[RequestOutput]:
    for submit in requests:
        engine.submit(submit)
    outputs = []
    while engine.has_work:
        outputs += engine.step().outputs
    return outputs


def ids_of(outputs: list[RequestOutput], name: str = "a") -> list[int]:
    return [token for o in outputs if o.request_id == name for token in o.token_ids]


def scores_of(outputs: list[RequestOutput], name: str = "a") -> list[TokenLogprobs]:
    return [score for o in outputs if o.request_id == name for score in o.prompt_logprobs]


def values(scores: list[TokenLogprobs]) -> list[float]:
    return [score.logprob for score in scores]


@pytest.mark.parametrize("speculation", ["always", "auto", "off"])
@pytest.mark.parametrize("budget", [1, 17, 256])
def test_scores_are_the_targets_own_log_probabilities(
    load: Load,
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    speculation: Speculation,
    budget: int,
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_BUDGET", budget)
    outputs = run(load(speculation), request(max_tokens=5, prompt_logprobs=3))
    table = teacher_forced(model, PROMPT)
    expected = table.gather(-1, torch.tensor(PROMPT[1:])[:, None])[:, 0].tolist()
    scores = scores_of(outputs)
    assert values(scores) == pytest.approx(expected, abs=1e-5)
    assert sum(values(scores)) == pytest.approx(sum(expected), abs=ALONE)
    best = table.topk(3)
    assert [score.top_ids for score in scores] == best.indices.tolist()
    for score, likeliest in zip(scores, best.values.tolist(), strict=True):
        assert score.top_logprobs == pytest.approx(likeliest, abs=1e-5)


def test_scores_come_before_the_first_token_and_change_no_token(load: Load) -> None:
    for sampling in (GREEDY, SamplingParams(temperature=1.0, seed=3)):
        plain = run(load("off"), request(max_tokens=24, sampling=sampling, prompt_logprobs=None))
        for speculation in ("always", "off"):
            outputs = run(load(speculation), request(max_tokens=24, sampling=sampling))
            assert ids_of(outputs) == ids_of(plain)
            kinds = [bool(output.token_ids) for output in outputs]
            assert kinds == sorted(kinds)
            assert [o.finish_reason for o in outputs[:-1]] == [None] * (len(outputs) - 1)
            assert outputs[-1].finish_reason == "length"
            assert len(scores_of(outputs)) == len(PROMPT) - 1


@pytest.mark.parametrize("speculation", ["always", "off"])
def test_what_was_generated_is_scored_as_it_was_generated(
    load: Load, speculation: Speculation
) -> None:
    """From a cold cache, and from the columns and features that decoding left."""
    engine = load(speculation)
    outputs = run(engine, request(max_tokens=40, logprobs=2))
    answer = ids_of(outputs)
    said = values([score for output in outputs for score in output.logprobs])
    for own in (engine, load(speculation)):
        again = run(own, request(PROMPT + answer))
        expected = pytest.approx(values(scores_of(outputs)) + said, abs=ALONE)
        assert values(scores_of(again)) == expected


def test_in_bfloat16_the_bits_are_those_of_decoding_where_rows_are_of_one_class(
    load: Load,
) -> None:
    def deterministic() -> Engine:
        return load(dtype="bfloat16", deterministic=True)

    outputs = run(deterministic(), request(max_tokens=60, logprobs=2))
    said = [score for output in outputs for score in output.logprobs]
    again = scores_of(run(deterministic(), request(PROMPT + ids_of(outputs), prompt_logprobs=2)))
    assert again[len(PROMPT) - 1 :] == said


@pytest.mark.parametrize("budget", [1, 20, 256])
def test_the_head_sees_as_many_rows_at_once_as_a_decoding_step_has(
    load: Load, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_BUDGET", budget)
    engine = load("off")
    head, counts = engine.target.head, []
    assert head is not None

    def counting(features: torch.Tensor) -> torch.Tensor:
        counts.append(len(features))
        return head(features)

    engine.target.head = counting
    run(engine, request())
    assert ROW_CLASS <= min(counts) <= max(counts) <= MAX_CPU_ROWS


def test_a_cached_prefix_is_scored_without_being_computed(load: Load, model: Any) -> None:
    engine = load()
    run(engine, request(PROMPT[:60] + [9] * 20, prompt_logprobs=None, max_tokens=3))
    rows: list[int] = []
    original = engine.target.prefill

    def prefill(slot: int, start: int, ids: list[int]) -> torch.Tensor:
        rows.extend(range(start, start + len(ids)))
        return original(slot, start, ids)

    engine.target.prefill = prefill  # type: ignore[method-assign]
    outputs = run(engine, request())
    assert outputs[-1].cached_tokens == 60
    assert rows == list(range(60, len(PROMPT) - 1))
    table = teacher_forced(model, PROMPT)
    expected = table.gather(-1, torch.tensor(PROMPT[1:])[:, None])[:, 0].tolist()
    assert values(scores_of(outputs)) == pytest.approx(expected, abs=1e-5)
    rows.clear()
    assert values(scores_of(run(engine, request()))) == pytest.approx(expected, abs=1e-5)
    assert rows == []


@pytest.mark.parametrize("scores", [None, 1])
def test_without_tokens_to_make_a_request_ends_with_its_prompt(
    load: Load, scores: int | None
) -> None:
    engine = load()
    outputs = run(engine, request(prompt_logprobs=scores))
    assert (outputs[-1].finish_reason, ids_of(outputs)) == ("length", [])
    assert engine.scheduler.slots[0].cached == PROMPT[:-1]
    assert engine.decoder.drafter is not None
    assert engine.decoder.drafter.lengths[0] == 0, "there is nothing to draft"
    (end,) = run(engine, request([5], prompt_logprobs=scores))
    assert (end.finish_reason, end.prompt_logprobs) == ("length", [])
    answer = run(engine, request(max_tokens=12, prompt_logprobs=None))
    expected = run(load("off"), request(max_tokens=12, prompt_logprobs=None))
    assert ids_of(answer) == ids_of(expected)


def test_the_whole_context_is_scored_with_most_alternatives(load: Load) -> None:
    prompt = [(11 * i) % 60 + 2 for i in range(CONTEXT)]
    scores = scores_of(run(load(), request(prompt, prompt_logprobs=MAX_LOGPROBS)))
    assert [len(score.top_ids) for score in scores] == [MAX_LOGPROBS] * (CONTEXT - 1)


def test_company_is_scored_and_served_as_alone(load: Load) -> None:
    prompts = [PROMPT, PROMPT[:50] + [3] * 30, [5], [7, 8], PROMPT[::-1]]
    submits = [
        request(prompt, str(number), max_tokens=(0, 9)[number % 2], prompt_logprobs=number % 3)
        for number, prompt in enumerate(prompts)
    ]
    submits.append(request(PROMPT[3:], "plain", max_tokens=20, prompt_logprobs=None))
    engine = load()
    for _ in range(2):  # the second time from a warm cache
        together = run(engine, *submits)
        for submit in submits:
            alone = run(load("off"), submit)
            assert ids_of(together, submit.request_id) == ids_of(alone, submit.request_id)
            expected = pytest.approx(values(scores_of(alone, submit.request_id)), abs=1e-5)
            assert values(scores_of(together, submit.request_id)) == expected


def test_a_long_prompt_lets_others_step_also_where_it_is_cached(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_BUDGET", 30)
    engine = load()
    other = request([4] * 9, "other", max_tokens=200, prompt_logprobs=None, speculative=False)
    for _ in range(2):
        engine.submit(other)
        engine.step()
        engine.submit(request())
        for _ in range(4):
            outputs = engine.step().outputs
            assert len(scores_of(outputs)) in (29, 30)
            assert len(ids_of(outputs, "other")) == 1
        engine.abort("other")
        assert not engine.has_work


@pytest.mark.parametrize("given", [0, 1, 29, 30, 31, 118, 119])
@pytest.mark.parametrize("is_warm", [False, True])
def test_another_engine_goes_on_behind_the_scores_that_were_given(
    load: Load, monkeypatch: pytest.MonkeyPatch, given: int, is_warm: bool
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_BUDGET", 30)
    whole = run(load(), request(max_tokens=10))
    engine = load()
    if is_warm:
        run(engine, request(PROMPT[:70], prompt_logprobs=None))
    rest = run(engine, request(max_tokens=10, scores_given=given))
    expected = values(scores_of(whole))[given:]
    assert values(scores_of(rest)) == pytest.approx(expected, abs=1e-5)
    assert ids_of(rest) == ids_of(whole)
    if given == len(PROMPT) - 1:
        answer = ids_of(whole)
        last = run(load(), request(max_tokens=10, scores_given=given, output_ids=answer[:4]))
        assert (scores_of(last), ids_of(last)) == ([], answer[4:])


def test_an_abort_among_the_scores_frees_the_slot(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_BUDGET", 30)
    engine = load(max_num_seqs=1)
    engine.submit(request())
    engine.step()
    engine.abort("a")
    assert not engine.has_work
    assert len(scores_of(run(engine, request()))) == len(PROMPT) - 1


@pytest.mark.parametrize("fault", ["nan", "inf", "raise"])
def test_a_head_that_fails_on_one_prompt_fails_that_request_alone(load: Load, fault: str) -> None:
    engine = load()
    original = engine.target.head
    assert original is not None
    plain = request([9] * 20, "plain", max_tokens=8, prompt_logprobs=None)
    expected = ids_of(run(load("off"), plain), "plain")
    calls = []

    def head(features: torch.Tensor) -> torch.Tensor:
        calls.append(len(features))
        if len(calls) == 2 and fault == "raise":
            raise RuntimeError("planted")
        logits = original(features)
        if len(calls) == 2:
            logits[3] = float(fault)
        return logits

    engine.target.head = head
    outputs = run(engine, request(), plain)
    assert [o.finish_reason for o in outputs if o.request_id == "a"] == ["error"]
    assert scores_of(outputs) == []
    assert ids_of(outputs, "plain") == expected
    assert len(scores_of(run(engine, request()))) == len(PROMPT) - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_logprobs": -1},
        {"prompt_logprobs": MAX_LOGPROBS + 1},
        {"logprobs": MAX_LOGPROBS + 1},
        {"max_tokens": -1},
        {"prompt_ids": []},
        {"prompt_ids": [1] * (CONTEXT + 1)},
        {"output_ids": [5]},
    ],
)
def test_what_cannot_be_scored_is_refused(load: Load, changes: dict[str, Any]) -> None:
    fields = {"prompt": changes.pop("prompt_ids", PROMPT)} | changes
    with pytest.raises(ValueError, match=r"."):
        load("off").check(request(**fields))


def test_a_model_whose_head_does_not_stand_alone_scores_nothing(load: Load) -> None:
    engine = load("off")
    engine.target.head = None
    with pytest.raises(ValueError, match="llama"):
        engine.check(request())
    engine.check(request(prompt_logprobs=None))


def test_what_a_step_says_of_prompts_is_far_from_the_longest_frame() -> None:
    """A budget of tokens, all of them scored, with ids and numbers that take most bytes."""
    score = TokenLogprobs(-1 / 3, [2**32] * MAX_LOGPROBS, [-1 / 3] * MAX_LOGPROBS)
    outputs = [
        RequestOutput("x" * 32, [], None, 0, 0, prompt_logprobs=[score])
        for _ in range(PREFILL_BUDGET)
    ]
    frame = encode_frame(StepReport(outputs, 0, 0, 0, 0, 0, 0, 0, 0, [], 0, 0))
    assert 100 * len(frame) < MAX_FRAME_BYTES
