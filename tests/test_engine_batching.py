"""Many requests at once get what each gets alone, and one that fails, fails alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter

from engine.config import Dtype, EngineConfig, Speculation
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import FinishReason, RequestOutput, SamplingParams, Submit

GREEDY = SamplingParams(temperature=0.0)
SYSTEM = [(5 * i) % 50 + 2 for i in range(40)]
PROMPTS = [
    *([3 + i] * (1 + 7 * i) for i in range(6)),
    *(SYSTEM + [50 + i] * (1 + i) for i in range(6)),
    *(SYSTEM[:20] + [9, i] * (8 + i) for i in range(4)),
]

Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def load(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Load:
    drafter = save_random_drafter(tiny_llama, tmp_path_factory.mktemp("drafter"), SMALL_TREE)

    def _load(
        speculation: Speculation = "always",
        dtype: Dtype = "float32",
        num_slots: int = 4,
        deterministic: bool = False,
    ) -> Engine:
        return load_engine(
            EngineConfig(
                model=str(tiny_llama),
                drafter=str(drafter),
                dtype=dtype,
                max_num_seqs=num_slots,
                speculation=speculation,
                deterministic=deterministic,
            )
        )

    return _load


def request(number: int, **changes: Any) -> Submit:
    """Every prompt has its own parameters: greedy, or one of two temperatures."""
    sampling = SamplingParams(temperature=(0.0, 0.8, 1.0)[number % 3], seed=number)
    settings: dict[str, Any] = {
        "request_id": str(number),
        "prompt_ids": PROMPTS[number % len(PROMPTS)],
        "max_tokens": 12 + number % 5,
        "sampling": sampling,
        "stop_token_ids": [7],
    }
    return Submit(**(settings | changes))


def run(engine: Engine, requests: list[Submit], between: int = 0) -> dict[str, list[int]]:
    """Submit all, `between` steps apart, and step until nothing is left; ids by request."""
    ids: dict[str, list[int]] = {request.request_id: [] for request in requests}
    waiting = list(requests)
    while waiting or engine.has_work:
        if waiting:
            engine.submit(waiting.pop(0))
            if between == 0 and waiting:
                continue
        for _ in range(max(1, between)):
            for output in engine.step().outputs:
                assert output.finish_reason != "error"
                ids[output.request_id] += output.token_ids
    assert all(slot.sequence is None for slot in engine.scheduler.slots)
    return ids


@pytest.fixture(scope="module")
def alone(load: Load) -> dict[tuple[Dtype, int], list[int]]:
    """What each request gets from a fresh engine that does not speculate."""
    answers = {}
    for dtype in ("float32", "bfloat16"):
        for number in range(len(PROMPTS)):
            engine = load("off", dtype, 1, deterministic=dtype == "bfloat16")
            answers[dtype, number] = run(engine, [request(number)])[str(number)]
    return answers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("speculation", ["always", "auto", "off"])
@pytest.mark.parametrize("num_slots", [1, 2, 4, 8, 16])
def test_company_changes_no_token(
    load: Load,
    alone: dict[tuple[Dtype, int], list[int]],
    num_slots: int,
    speculation: Speculation,
    dtype: Dtype,
) -> None:
    """Whatever shares a forward, in whatever order, from a cold or a warm cache."""
    engine = load(speculation, dtype, num_slots, deterministic=dtype == "bfloat16")
    dice = random.Random(num_slots)
    numbers = list(range(len(PROMPTS)))
    expected = {str(number): alone[dtype, number] for number in numbers}
    for between in (0, 1, 3):
        dice.shuffle(numbers)
        assert run(engine, [request(number) for number in numbers], between) == expected


def test_a_request_that_does_not_speculate_runs_beside_one_that_does(
    load: Load, alone: dict[tuple[Dtype, int], list[int]]
) -> None:
    engine = load()
    requests = [request(number, speculative=number % 2 == 0) for number in range(4)]
    assert run(engine, requests) == {str(n): alone["float32", n] for n in range(4)}


def test_a_request_goes_on_behind_what_it_was_given(
    load: Load, alone: dict[tuple[Dtype, int], list[int]]
) -> None:
    whole = alone["float32", 9]
    for given in range(1, len(whole)):
        ids = run(load(), [request(9, output_ids=whole[:given])])["9"]
        assert whole[:given] + ids == whole


def test_second_turn_reuses_the_first_and_says_so(load: Load) -> None:
    engine = load()
    first = request(8, stop_token_ids=[])
    answer = run(engine, [first])["8"]
    again = request(8, request_id="again", prompt_ids=[*first.prompt_ids, *answer, 9, 9])
    expected = run(load("off"), [again])["again"]
    engine.submit(again)
    outputs = outputs_of(engine)
    assert [id for output in outputs for id in output.token_ids] == expected
    assert {output.cached_tokens for output in outputs} == {len(first.prompt_ids + answer) - 1}


def test_long_prompt_lets_running_requests_step_between_its_chunks(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.engine.PREFILL_BUDGET", 64)
    engine = load(num_slots=2)
    engine.submit(request(0, max_tokens=200, stop_token_ids=[]))
    engine.step()
    engine.submit(request(1, prompt_ids=[5] * 200))
    named = [{output.request_id for output in engine.step().outputs} for _ in range(5)]
    assert named == [{"0"}] * 3 + [{"0", "1"}] * 2


def outputs_of(engine: Engine) -> list[RequestOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step().outputs
    return outputs


def run_four(engine: Engine) -> tuple[dict[str, list[int]], dict[str, FinishReason | None]]:
    """The first four requests at once: ids and last finish reasons, whatever becomes of them."""
    for number in range(4):
        engine.submit(request(number))
    ids: dict[str, list[int]] = {str(number): [] for number in range(4)}
    reasons = {}
    for output in outputs_of(engine):
        ids[output.request_id] += output.token_ids
        reasons[output.request_id] = output.finish_reason
    return ids, reasons


def test_abort_in_the_middle_of_a_prompt_frees_its_slot(
    load: Load, alone: dict[tuple[Dtype, int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.engine.PREFILL_BUDGET", 5)
    engine = load(num_slots=1)
    engine.submit(request(9))
    engine.submit(request(8))
    engine.step()
    engine.abort("9")
    engine.abort("8")
    assert not engine.has_work
    assert run(engine, [request(9)])["9"] == alone["float32", 9]


@pytest.mark.parametrize("budget", [1, 3, 16, 17, 64])
def test_chunk_boundaries_change_no_token(
    load: Load,
    alone: dict[tuple[Dtype, int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    budget: int,
) -> None:
    monkeypatch.setattr("engine.engine.PREFILL_BUDGET", budget)
    for dtype in ("float32", "bfloat16"):
        engine = load(dtype=dtype, deterministic=True)
        ids = run(engine, [request(number) for number in range(6, 12)])
        assert ids == {str(n): alone[dtype, n] for n in range(6, 12)}


def poison_target(engine: Engine, request_id: str, after: int, value: float) -> None:
    """Make the features and logits of one request not finite from its `after`-th forward on."""
    original, seen = engine.target.forward, [0]

    def forward(ids, rows, logits_to_keep=0):  # type: ignore[no-untyped-def]
        verdict = original(ids, rows, logits_to_keep)
        sequence = engine.scheduler.sequences.get(request_id)
        if sequence is not None and sequence.slot in rows.slots:
            seen[0] += 1
            if seen[0] > after:
                own = rows.slots.index(sequence.slot)
                part = slice(own * rows.count, (own + 1) * rows.count)
                verdict.features[part] = value
                if logits_to_keep == 0:
                    verdict.logits[part] = value
                engine.target.slots.tensor[:, :, sequence.slot] = value
        return verdict

    engine.target.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("after", [0, 1, 4])
def test_numbers_that_are_not_finite_end_one_request_alone(
    load: Load, alone: dict[tuple[Dtype, int], list[int]], after: int, value: float
) -> None:
    """`after` 0 is in the prompt; then at decoding."""
    engine = load()
    poison_target(engine, "2", after, value)
    ids, reasons = run_four(engine)
    assert reasons.pop("2") == "error"
    assert "error" not in reasons.values()
    survivors = {"0", "1", "3"}
    assert {n: ids[n] for n in survivors} == {n: alone["float32", int(n)] for n in survivors}
    del engine.target.forward  # type: ignore[method-assign]
    again = run(engine, [request(number) for number in range(4)])
    assert again == {str(n): alone["float32", n] for n in range(4)}


def test_a_drafted_row_that_is_not_finite_costs_only_speed(
    load: Load, alone: dict[tuple[Dtype, int], list[int]]
) -> None:
    """Masked columns that are not finite spoil every row of their request, for one step."""
    engine = load()
    original, planted = engine.decoder.verify, []

    def verify(drafts, sequences):  # type: ignore[no-untyped-def]
        verdict = original(drafts, sequences)
        if drafts.tokens.shape[1] > 1 and len(planted) < 3:
            slot, length = sequences[0].slot, sequences[0].length
            engine.target.slots.tensor[:, :, slot, :, length + 5] = float("inf")
            verdict.logits[0] = float("nan")
            planted.append(slot)
        return verdict

    engine.decoder.verify = verify  # type: ignore[method-assign]
    ids = run(engine, [request(number) for number in range(4)])
    assert ids == {str(number): alone["float32", number] for number in range(4)}
    assert len(planted) == 3
    assert bool(engine.target.slots.tensor.isfinite().all())


def test_a_drafter_that_is_not_finite_costs_only_speed(
    load: Load, alone: dict[tuple[Dtype, int], list[int]]
) -> None:
    engine = load()
    drafter = engine.decoder.drafter
    assert drafter is not None
    engine.submit(request(9))
    engine.step()
    drafter.keys_values.fill_(float("nan"))
    drafter.tail.fill_(float("nan"))
    first = outputs_of(engine)
    assert all(0 <= token < 64 for output in first for token in output.token_ids)
    numbers = list(range(6, 10))
    ids = run(engine, [request(number) for number in numbers])
    assert ids == {str(number): alone["float32", number] for number in numbers}
    assert bool(drafter.keys_values.isfinite().all())


@pytest.mark.parametrize("part", ["draft", "verify"])
def test_an_exception_ends_only_the_request_that_causes_it(
    load: Load, alone: dict[tuple[Dtype, int], list[int]], part: str
) -> None:
    engine = load()
    original = getattr(engine.decoder, part)

    def fail(*args: Any) -> Any:
        sequences = next(a for a in args if isinstance(a, list) and hasattr(a[0], "request"))
        if any(s.request.request_id == "2" and s.num_output > 2 for s in sequences):
            raise RuntimeError("planted")
        return original(*args)

    setattr(engine.decoder, part, fail)
    ids, reasons = run_four(engine)
    expected = {str(number): alone["float32", number] for number in range(4)}
    assert reasons.pop("2") == "error"
    assert "error" not in reasons.values()
    begun = ids.pop("2")
    assert expected.pop("2")[: len(begun)] == begun
    assert ids == expected


@pytest.mark.parametrize("part", ["draft", "extend", "prefill", "adopt"])
def test_a_drafter_that_raises_costs_only_speed(
    load: Load, alone: dict[tuple[Dtype, int], list[int]], part: str
) -> None:
    engine = load()
    drafter = engine.decoder.drafter
    assert drafter is not None

    def fail(*args: object) -> torch.Tensor:
        raise RuntimeError("planted")

    setattr(drafter, part, fail)
    ids = run(engine, [request(number) for number in range(4)])
    assert ids == {str(number): alone["float32", number] for number in range(4)}


def test_speculation_off_loads_no_drafter(load: Load) -> None:
    assert load("off").decoder.drafter is None
    assert load("auto").policy.planner is not None
    assert load("always").policy.planner is None
