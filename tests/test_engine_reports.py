"""What steps report adds up: of prompts what is computed or cached, of requests why none drafts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter

from drafter.plan import DraftPlan
from engine.config import EngineConfig, NGrams, Speculation
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import SamplingParams, StepReport, Submit

GREEDY = SamplingParams(temperature=0.0)
LONG = [(5 * i) % 50 + 2 for i in range(150)]
WHOLE_PLAN = f"{SMALL_TREE.num_nodes - 1}x2"


@pytest.fixture(scope="module")
def drafter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_drafter(tiny_llama, tmp_path_factory.mktemp("drafter"), SMALL_TREE)


def load(
    tiny_llama: Path,
    drafter: Path | None,
    speculation: Speculation = "always",
    ngrams: NGrams | None = None,
) -> Engine:
    folder = None if drafter is None else str(drafter)
    return load_engine(
        EngineConfig(
            model=str(tiny_llama),
            drafter=folder,
            dtype="float32",
            max_num_seqs=2,
            speculation=speculation,
            prompt_lookup=ngrams,
        )
    )


def run(engine: Engine, *requests: Submit) -> list[StepReport]:
    for request in requests:
        engine.submit(request)
    reports = []
    while engine.has_work:
        reports.append(engine.step())
    return reports


def steps_by(reports: Sequence[StepReport], field: str) -> Counter[str]:
    return sum((Counter(getattr(report, field)) for report in reports), Counter())


@pytest.mark.parametrize("budget", [7, 256])
def test_prompt_tokens_are_computed_or_cached_and_none_twice(
    tiny_llama: Path, drafter: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """From nothing, wholly cached, a part of it, and behind what an earlier engine gave."""
    monkeypatch.setattr("engine.engine.PREFILL_BUDGET", budget)
    engine = load(tiny_llama, drafter)
    for number, (prompt, given, cached) in enumerate(
        [(LONG, [], 0), (LONG, [], 149), (LONG[:60] + [9] * 5, [], 60), ([11] * 9, [3, 4], 0)]
    ):
        request = Submit(str(number), prompt, 4, GREEDY, [], given)
        reports = run(engine, request)
        assert sum(report.cached_tokens for report in reports) == cached
        computed = sum(report.computed_tokens for report in reports)
        assert computed == len(prompt) + len(given) - cached


def test_a_request_that_asks_for_no_draft_is_counted_apart_from_its_neighbour(
    tiny_llama: Path, drafter: Path
) -> None:
    requests = [Submit(name, [3, 4, 5], 6, GREEDY, [], speculative=name == "a") for name in "ab"]
    reports = run(load(tiny_llama, drafter), *requests)
    outputs = [output for report in reports for output in report.outputs]
    own = Counter(output.request_id for output in outputs)
    assert steps_by(reports, "plans") == {WHOLE_PLAN: own["a"], "0x0": own["b"]}
    assert steps_by(reports, "plain") == {"request": own["b"]}


def test_a_prediction_is_a_plan_of_its_own(tiny_llama: Path, drafter: Path) -> None:
    first = run(load(tiny_llama, None), Submit("a", [3, 4, 5], 12, GREEDY, []))
    answer = [token for report in first for token in report.outputs[0].token_ids]
    predicting = Submit("b", [3, 4, 5], 12, GREEDY, [], prediction_ids=answer)
    reports = run(load(tiny_llama, None), predicting)
    assert [token for r in reports for token in r.outputs[0].token_ids] == answer
    predicted = sum(bool(report.outputs[0].predicted) for report in reports)
    assert 0 < predicted < 12
    assert steps_by(reports, "plans")["predicted"] == predicted
    assert steps_by(reports, "plain")["no_drafter"] == len(reports) - predicted
    assert all(report.depths == [] for report in reports)


def test_without_a_drafter_that_is_the_reason(tiny_llama: Path) -> None:
    reports = run(load(tiny_llama, None), Submit("a", [3, 4], 5, GREEDY, []))
    assert steps_by(reports, "plain") == {"no_drafter": 5}


def test_what_the_text_said_before_is_a_plan_of_its_own(tiny_llama: Path) -> None:
    """The first pick after a prompt without repetition has no match, and is then followed."""
    ask = Submit("a", [3, 4, 5], 12, SamplingParams(temperature=0.0, logit_bias={7: 100.0}), [])
    reports = run(load(tiny_llama, None, ngrams=NGrams()), ask)
    outputs = [report.outputs[0] for report in reports]
    assert [len(output.token_ids) for output in outputs] == [1, 1, 10]
    assert steps_by(reports, "plans") == {"0x0": 2, "lookup": 1}
    assert steps_by(reports, "plain") == {"no_match": 2}
    assert outputs[-1].sources == ["drafted"] * 9 + ["bonus"]
    assert (reports[-1].drafted, reports[-1].accepted_lengths, reports[-1].depths) == (9, [9], [9])
    assert (outputs[-1].predicted, outputs[-1].rejected_predicted) == (0, 0)


def test_a_request_that_asks_for_no_draft_is_not_looked_up(tiny_llama: Path) -> None:
    engine = load(tiny_llama, None, ngrams=NGrams())
    reports = run(engine, Submit("a", [7] * 9, 5, GREEDY, [], speculative=False))
    assert steps_by(reports, "plain") == {"request": 5}


def test_where_drafting_does_not_pay_the_load_is_the_reason(
    tiny_llama: Path, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny_llama, drafter, "auto")
    assert engine.policy.planner is not None

    def choose_plain(batch: int) -> DraftPlan:
        return engine.policy.plain

    monkeypatch.setattr(engine.policy.planner, "choose", choose_plain)
    reports = run(engine, Submit("a", [3, 4], 5, GREEDY, []))
    assert steps_by(reports, "plain") == {"load": 5}


def test_a_drafter_that_fails_is_the_reason(
    tiny_llama: Path, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tiny_llama, drafter)

    def fail(*args: object) -> torch.Tensor:
        raise RuntimeError("planted")

    monkeypatch.setattr(engine.decoder.drafter, "prefill", fail)
    reports = run(engine, Submit("a", [3, 4, 5], 5, GREEDY, []))
    assert steps_by(reports, "plain") == {"fault": 5}


def test_the_time_in_a_slot_grows_from_step_to_step(tiny_llama: Path, drafter: Path) -> None:
    reports = run(load(tiny_llama, drafter), Submit("a", LONG, 30, GREEDY, []))
    times = [report.outputs[0].slot_ms for report in reports]
    assert times == sorted(times)
    first = reports[0]
    assert times[0] >= first.prefill_ms + first.draft_ms + first.verify_ms
