"""The published figures, on answers made by hand; the protocol, on a fake method."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest
import torch

from benchmarks.figures import figures
from benchmarks.methods import Generation, Memory, Phases, generation_of
from benchmarks.prompts import Prompt
from benchmarks.protocol import Trial, measure
from engine.messages import RequestOutput, StepReport


def answer(
    tokens: Sequence[int], seconds: float, steps: int, accepted: int, phases: Phases | None = None
) -> Generation:
    return Generation(tuple(tokens), seconds, steps, accepted, 4 * steps, phases)


def report(prefill_ms: float, host_ms: float, tokens: list[int], accepted: int) -> StepReport:
    output = RequestOutput("0", tokens, None, drafted=3, accepted=accepted)
    return StepReport(
        outputs=[output],
        running=1,
        waiting=0,
        prefill_ms=prefill_ms,
        draft_ms=1.0,
        verify_ms=2.0,
        host_ms=host_ms,
        passes=1,
        drafted=3,
        accepted_lengths=[accepted],
    )


TRIALS = [
    Trial(
        "a",
        {
            "ar": (answer(range(6), 6.0, 6, 0), answer(range(6), 8.0, 6, 0)),
            "falcon": (
                answer(range(6), 1.0, 2, 4, Phases(500.0, 100.0, 300.0, 100.0)),
                answer(range(6), 3.0, 2, 4, Phases(1500.0, 300.0, 900.0, 300.0)),
            ),
            "hf": (answer(range(6), 3.5, 6, 0), answer(range(6), 3.5, 6, 0)),
        },
    ),
    Trial(
        "b",
        {
            "ar": (answer(range(2), 2.0, 2, 0), answer(range(2), 2.0, 2, 0)),
            "falcon": (
                answer(range(2), 2.0, 2, 0, Phases(0.0, 0.0, 2000.0, 0.0)),
                answer([0, 7], 2.0, 2, 0, Phases(0.0, 0.0, 2000.0, 0.0)),
            ),
            "hf": (answer([9, 9], 1.0, 2, 0), answer([9, 9], 1.0, 2, 0)),
        },
    ),
]


def test_speed_is_all_tokens_over_the_sum_of_median_seconds() -> None:
    falcon = figures(TRIALS, "falcon")
    assert falcon.seconds == pytest.approx(2.0 + 2.0)
    assert falcon.tokens_per_second == pytest.approx(8 / 4.0)
    assert falcon.speedup == pytest.approx(2.0 / (8 / 9.0))
    assert falcon.speedup_over_hf == pytest.approx(2.0 / (8 / 4.5))
    assert falcon.tokens_per_second_range == pytest.approx((8 / 5.0, 8 / 3.0))
    assert falcon.decode_tokens_per_second == pytest.approx(8 / 3.0)


def test_tau_counts_the_bonus_token_and_tau_0_does_not() -> None:
    falcon = figures(TRIALS, "falcon")
    assert (falcon.tau, falcon.tau_0, falcon.alpha) == (2.0, 1.0, 0.5)
    assert falcon.alpha == falcon.tau_0 / falcon.tau
    assert falcon.nodes == 4.0


def test_one_differing_repeat_makes_a_prompt_not_identical() -> None:
    assert figures(TRIALS, "ar").identical == 1.0
    assert figures(TRIALS, "falcon").identical == 0.5
    assert figures(TRIALS, "hf", is_comparable=False).identical is None


def test_without_the_baseline_nothing_is_relative() -> None:
    alone = [Trial(t.source, {"falcon": t.generations["falcon"]}) for t in TRIALS]
    falcon = figures(alone, "falcon")
    assert (falcon.speedup, falcon.speedup_over_hf, falcon.identical) == (None, None, None)


def test_times_are_split_per_step_and_prefill_per_prompt() -> None:
    ms = figures(TRIALS, "falcon").ms
    assert ms.prefill == pytest.approx(1000 / 2)
    assert (ms.draft, ms.verify, ms.host) == pytest.approx((200 / 4, 2600 / 4, 200 / 4))
    assert ms.step == pytest.approx(4000 / 4)
    assert figures(TRIALS, "hf").ms.verify is None


def test_a_generation_adds_up_its_reports() -> None:
    reports = [report(7.0, 3.0, [1, 2], 1), report(0.0, 2.0, [3], 0), report(0, 4, [4, 5, 6], 2)]
    generation = generation_of(reports, 0.5)
    assert generation.token_ids == (1, 2, 3, 4, 5, 6)
    assert (generation.steps, generation.accepted, generation.nodes) == (3, 3, 12)
    assert generation.phases == Phases(prefill=7.0, draft=3.0, verify=6.0, host=9.0)


class RecordingMethod:
    """Writes down when it is called, and whether the collector was off."""

    is_comparable = True
    dtype = torch.float32

    def __init__(self, name: str, calls: list[tuple[str, int, bool]]) -> None:
        self.name = name
        self.calls = calls

    def generate(self, prompt_ids: Sequence[int]) -> Generation:
        self.calls.append((self.name, prompt_ids[0], gc.isenabled()))
        return answer(prompt_ids, 1.0, 1, 0)

    def memory(self) -> Memory:
        return Memory(0, 0)


def test_methods_take_turns_on_each_prompt_with_the_collector_off() -> None:
    calls: list[tuple[str, int, bool]] = []
    methods = [RecordingMethod("ar", calls), RecordingMethod("hf", calls)]
    trials = measure(methods, [Prompt("a", [1]), Prompt("a", [2])], repeats=2)
    order = [(name, prompt) for name, prompt, _ in calls]
    assert order == [
        *[("ar", 1), ("hf", 1), ("hf", 1), ("ar", 1)],
        *[("hf", 2), ("ar", 2), ("ar", 2), ("hf", 2)],
    ]
    assert not any(enabled for *_, enabled in calls)
    assert gc.isenabled()
    assert [len(trial.generations["hf"]) for trial in trials] == [2, 2]
