"""A prediction changes the speed of an answer and no token of it, and is counted honestly."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter

from drafter.plan import build_plan
from engine.config import Dtype, EngineConfig, Speculation
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import RequestOutput, SamplingParams, Submit
from engine.planner import Costs, Planner
from engine.prediction import predict
from engine.sequence import Sequence
from engine.speculative import MAX_CPU_ROWS
from tree.topology import ROOT_ONLY, Tree

GREEDY = SamplingParams(temperature=0.0)
WARM = SamplingParams(temperature=1.0, seed=9)
PROMPT = [5, 9, 11, 3, 8, 13, 21]
LENGTH = 60

Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def load(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = str(save_random_drafter(tiny_llama, tmp_path_factory.mktemp("drafter"), SMALL_TREE))

    def _load(
        speculation: Speculation = "always", dtype: Dtype = "float32", drafter: bool = True
    ) -> Engine:
        return load_engine(
            EngineConfig(
                model=str(tiny_llama),
                drafter=folder if drafter else None,
                dtype=dtype,
                max_num_seqs=3,
                speculation=speculation,
                deterministic=dtype == "bfloat16",
            )
        )

    return _load


@pytest.fixture(scope="module")
def answers(load: Load) -> dict[tuple[Dtype, float], list[int]]:
    """What PROMPT gives plainly, by dtype and temperature."""
    return {
        (dtype, sampling.temperature): ids_of(run(load("off", dtype), request(sampling)))
        for dtype in ("float32", "bfloat16")
        for sampling in (GREEDY, WARM)
    }


@pytest.fixture(scope="module")
def engines(load: Load) -> dict[Dtype, list[Engine]]:
    """With and without a drafter and a planner; each finds the prompt in its cache."""
    return {
        dtype: [load("always", dtype), load("auto", dtype), load("auto", dtype, drafter=False)]
        for dtype in ("float32", "bfloat16")
    }


def request(sampling: SamplingParams = GREEDY, **changes: Any) -> Submit:
    settings = {"max_tokens": LENGTH, "stop_token_ids": [], "sampling": sampling}
    return Submit(**({"request_id": "a", "prompt_ids": PROMPT} | settings | changes))


def run(engine: Engine, *requests: Submit) -> list[RequestOutput]:
    for one in requests:
        engine.submit(one)
    outputs = []
    while engine.has_work:
        outputs += engine.step().outputs
    return outputs


def ids_of(outputs: list[RequestOutput], name: str = "a") -> list[int]:
    return [token for o in outputs if o.request_id == name for token in o.token_ids]


def guesses(answer: list[int]) -> dict[str, list[int]]:
    """Predictions from right to malicious."""
    dice = random.Random(4)
    other = [dice.randrange(64) for _ in answer]
    return {
        "right": answer,
        "longer": [*answer, *other],
        "half right": [*answer[:30], *other[30:]],
        "half right, later": [*other[:30], *answer[30:]],
        "replaced": [token if i % 7 else other[i] for i, token in enumerate(answer)],
        "left out": [token for i, token in enumerate(answer) if i % 7],
        "put in": [t for i, token in enumerate(answer) for t in ([token] if i % 9 else [7, token])],
        "moved": [*answer[30:], *answer[:30]],
        "repeated": answer[:6] * 9,
        "wrong": other,
        "always misleading": [t for a, b in pairwise(answer) for t in (a, b, 64 - 1 - b)],
        "one token": answer[:1],
        "one token for ever": [3] * 256,
    }


@pytest.mark.parametrize("guess", guesses([0] * LENGTH))
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_prediction_changes_a_token(
    engines: dict[Dtype, list[Engine]],
    answers: dict[tuple[Dtype, float], list[int]],
    dtype: Dtype,
    sampling: SamplingParams,
    guess: str,
) -> None:
    """With and without a drafter, whatever decides how much is drafted."""
    answer = answers[dtype, sampling.temperature]
    prediction = guesses(answer)[guess]
    for engine in engines[dtype]:
        outputs = run(engine, request(sampling, prediction_ids=prediction))
        assert ids_of(outputs) == answer
        check_counts(outputs)


def check_counts(outputs: list[RequestOutput]) -> None:
    for output in outputs:
        assert output.sources.count("predicted") + output.rejected_predicted <= output.predicted
        assert output.sources.count("predicted") <= output.accepted <= len(output.token_ids)
        assert output.predicted in (0, output.drafted)
        is_cut = output.finish_reason is not None
        if not is_cut:
            assert output.sources.count("predicted") + output.rejected_predicted == output.predicted


def totals(outputs: list[RequestOutput]) -> tuple[int, int]:
    """Accepted and rejected."""
    accepted = sum(output.sources.count("predicted") for output in outputs)
    return accepted, sum(output.rejected_predicted for output in outputs)


@pytest.mark.parametrize("drafter", [True, False])
def test_a_right_prediction_is_accepted_in_whole_stretches(
    load: Load, answers: dict[tuple[Dtype, float], list[int]], drafter: bool
) -> None:
    answer = answers["float32", 0.0]
    outputs = run(load(drafter=drafter), request(prediction_ids=answer))
    assert [o.accepted for o in outputs] == [o.sources.count("predicted") for o in outputs]
    assert [len(o.token_ids) for o in outputs] == [16, 16, 16, 12]
    assert totals(outputs) == (LENGTH - 4, 0)


def test_tokens_behind_the_first_that_is_wrong_are_rejected(
    load: Load, answers: dict[tuple[Dtype, float], list[int]]
) -> None:
    answer = answers["float32", 0.0]
    wrong = [*answer[:10], (answer[10] + 1) % 64, *answer[11:]]
    first, *_ = run(load(drafter=False), request(prediction_ids=wrong))
    assert first.token_ids == answer[:11]
    assert (first.predicted, first.sources.count("predicted"), first.rejected_predicted) == (
        15,
        10,
        5,
    )


@pytest.mark.parametrize("stop_at", range(0, 40, 3))
def test_what_is_cut_after_a_stop_is_neither_accepted_nor_rejected(
    load: Load, answers: dict[tuple[Dtype, float], list[int]], stop_at: int
) -> None:
    answer = answers["float32", 1.0]
    stop = answer[stop_at]
    length = answer.index(stop) + 1
    ask = request(WARM, prediction_ids=answer, stop_token_ids=[stop])
    outputs = run(load(), ask)
    assert ids_of(outputs) == answer[:length]
    assert outputs[-1].finish_reason == "stop"
    accepted, rejected = totals(outputs)
    assert rejected == 0
    assert accepted == sum(o.accepted for o in outputs) <= length


@pytest.mark.parametrize("max_tokens", [1, 2, 15, 16, 17, 31, 33])
def test_no_more_is_predicted_than_may_come(
    load: Load, answers: dict[tuple[Dtype, float], list[int]], max_tokens: int
) -> None:
    answer = answers["float32", 0.0]
    outputs = run(load(drafter=False), request(prediction_ids=answer, max_tokens=max_tokens))
    assert ids_of(outputs) == answer[:max_tokens]
    assert all(output.predicted < max(2, len(output.token_ids)) for output in outputs)


def test_replayed_requests_go_on_in_the_middle_of_their_prediction(
    load: Load, answers: dict[tuple[Dtype, float], list[int]]
) -> None:
    answer = answers["float32", 1.0]
    for given in (1, 17, 40, LENGTH - 1):
        ask = request(WARM, prediction_ids=answer, output_ids=answer[:given])
        outputs = run(load(), ask)
        assert answer[:given] + ids_of(outputs) == answer
        assert sum(o.predicted for o in outputs[:1]) == min(15, LENGTH - given - 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("speculation", ["always", "auto"])
def test_neighbours_with_and_without_predictions_change_no_token(
    load: Load,
    answers: dict[tuple[Dtype, float], list[int]],
    speculation: Speculation,
    dtype: Dtype,
) -> None:
    """Five requests in three slots, so that some find the prompt of another in their cache."""
    engine = load(speculation, dtype)
    kinds = list(guesses(answers[dtype, 0.0]))[:5]
    for sampling in (GREEDY, WARM):
        answer = answers[dtype, sampling.temperature]
        asked = [
            request(sampling, request_id=kind, prediction_ids=guesses(answer)[kind])
            for kind in kinds
        ]
        asked += [request(sampling, request_id="drafts")]
        asked += [request(sampling, request_id="plain", speculative=False, prediction_ids=answer)]
        outputs = run(engine, *asked)
        assert {o.request_id: ids_of(outputs, o.request_id) for o in outputs} == {
            one.request_id: answer for one in asked
        }
        assert totals([o for o in outputs if o.request_id == "right"])[0] > LENGTH // 2
        assert not any(o.predicted for o in outputs if o.request_id in ("drafts", "plain"))


def test_who_predicts_and_who_drafts_share_a_forward(
    load: Load, answers: dict[tuple[Dtype, float], list[int]]
) -> None:
    engine = load()
    forwards = []
    original = engine.target.forward

    def forward(ids, rows, logits_to_keep=0):  # type: ignore[no-untyped-def]
        forwards.append((rows.batch, rows.count))
        return original(ids, rows, logits_to_keep)

    engine.submit(request(prediction_ids=answers["float32", 0.0]))
    engine.submit(request(request_id="b"))
    engine.step()
    engine.target.forward = forward  # type: ignore[method-assign]
    report = engine.step()
    assert forwards == [(2, 16)]
    assert [output.predicted for output in report.outputs] == [15, 0]
    assert report.passes == len(engine.decoder.plan.passes)


def test_no_pass_is_made_where_all_predict(
    load: Load, answers: dict[tuple[Dtype, float], list[int]]
) -> None:
    engine = load()
    drafter = engine.decoder.drafter
    assert drafter is not None
    drafter.draft = None  # type: ignore[assignment, method-assign]
    answer = answers["float32", 0.0]
    engine.submit(request(prediction_ids=answer))
    engine.submit(request(request_id="b", prediction_ids=answer))
    reports = []
    while engine.has_work:
        reports.append(engine.step())
    assert {report.passes for report in reports} == {0}


@pytest.mark.usefixtures("unrounded")
def test_the_drafter_reads_what_it_missed_when_the_prediction_ends(
    load: Load, answers: dict[tuple[Dtype, float], list[int]]
) -> None:
    """Then it holds what it holds without any prediction."""
    held = []
    for prediction in ([], answers["float32", 0.0][:31]):
        engine = load()
        drafter = engine.decoder.drafter
        assert drafter is not None
        outputs = run(engine, request(prediction_ids=prediction))
        assert bool(prediction) == any(output.predicted for output in outputs)
        assert drafter.lengths[0] > len(PROMPT) + LENGTH - 10
        committed = slice(drafter.scratch, drafter.scratch + len(PROMPT) + LENGTH - 10)
        held.append(drafter.keys_values[:, :, 0, :, committed])
    torch.testing.assert_close(*held, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("speculation", ["off", "always"])
def test_predictions_are_not_used_where_nothing_is_to_be_speculated(
    load: Load, answers: dict[tuple[Dtype, float], list[int]], speculation: Speculation
) -> None:
    answer = answers["float32", 0.0]
    ask = request(prediction_ids=answer, speculative=speculation == "off")
    outputs = run(load(speculation), ask)
    assert ids_of(outputs) == answer
    assert {(o.drafted, o.accepted, o.predicted) for o in outputs} == {(0, 0, 0)}


def test_abort_in_the_middle_of_a_prediction_frees_the_slot(
    load: Load, answers: dict[tuple[Dtype, float], list[int]]
) -> None:
    engine, answer = load(), answers["float32", 0.0]
    engine.submit(request(prediction_ids=answer))
    engine.step()
    engine.abort("a")
    assert not engine.has_work
    assert ids_of(run(engine, request(prediction_ids=answer))) == answer


def test_a_predicted_row_that_is_not_finite_costs_only_speed(
    load: Load, answers: dict[tuple[Dtype, float], list[int]]
) -> None:
    engine, answer = load(), answers["float32", 0.0]
    original, planted = engine.decoder.verify, []

    def verify(drafts, sequences):  # type: ignore[no-untyped-def]
        verdict = original(drafts, sequences)
        if sequences[0].stretch and not planted:
            verdict.logits[0, 1:] = float("nan")
            planted.append(True)
        return verdict

    engine.decoder.verify = verify  # type: ignore[method-assign]
    outputs = run(engine, request(prediction_ids=answer))
    assert ids_of(outputs) == answer
    assert planted


@pytest.mark.parametrize("prediction", [[64], [-1], [1] * 257])
def test_a_prediction_that_cannot_be_is_refused(load: Load, prediction: list[int]) -> None:
    with pytest.raises(ValueError, match="prediction"):
        load("off").check(request(prediction_ids=prediction))


CHEAP = Costs({16: 10.0, 32: 11.0, 64: 12.0}, *3 * [{1: 0.5, 8: 0.6}])
DEAR = Costs({16: 10.0, 32: 20.0, 64: 40.0}, *3 * [{1: 0.5, 8: 4.0}])


def chosen(costs: Costs, batch: int, trust: int, tree: Tree = SMALL_TREE) -> list[int]:
    """Lengths of the stretches of `batch` sequences that have followed for `trust` tokens."""
    answer = list(range(1, 64)) * 4
    reach = {path: 0.5 ** len(path) for path in tree.paths[1:]}
    plan = build_plan(tree, 2, torch.device("cpu"))
    planner = Planner([plan], costs, reach)
    sequences = [
        Sequence(Submit(str(i), [1], 200, GREEDY, [], answer[:trust], prediction_ids=answer), i)
        for i in range(batch)
    ]
    predict(sequences, plan, planner, MAX_CPU_ROWS)
    return [len(sequence.stretch) for sequence in sequences]


def test_stretches_are_as_long_as_pays() -> None:
    assert chosen(CHEAP, 1, 60) == [31]
    assert chosen(DEAR, 1, 60) == [15]
    assert chosen(DEAR, 4, 60) == [3] * 4
    assert chosen(CHEAP, 4, 60) == [15] * 4
    assert chosen(DEAR, 4, 60, ROOT_ONLY) == [3] * 4
