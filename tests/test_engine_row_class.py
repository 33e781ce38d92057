"""How few rows a forward may have is found out, not assumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from drafter.plan import build_plan
from engine.config import EngineConfig
from engine.costs import row_counts
from engine.loading import load_engine
from engine.messages import SamplingParams, Submit
from engine.planner import Costs, Planner
from engine.row_class import probe_fewest_rows
from engine.rows import ROW_CLASS, ROW_STEP, Rows
from engine.target import Verdict, load_target
from tree.topology import ROOT_ONLY

LIKE = torch.zeros(1)


@pytest.mark.parametrize("others", [(), (4,), (12,), (20,), (28,)])
def test_one_number_of_rows_that_is_summed_otherwise_keeps_the_padding(
    others: tuple[int, ...],
) -> None:
    table = torch.randn(50, 8)

    def forward(ids: Tensor, rows: Rows) -> Tensor:
        return table[ids] + 1e-7 * (len(ids) in others)

    fewest = probe_fewest_rows(forward, 50, 0, context_length=64, like=LIKE)
    assert fewest == (ROW_CLASS if others else ROW_STEP)


def test_reduced_precision_is_always_padded() -> None:
    def forward(ids: Tensor, rows: Rows) -> Tensor:
        raise AssertionError("not tried")

    like = LIKE.to(torch.bfloat16)
    assert probe_fewest_rows(forward, 50, 0, context_length=64, like=like) == ROW_CLASS


@pytest.mark.parametrize("length", [1, 4, 100])
@torch.inference_mode()
def test_any_context_is_long_enough_to_try(tiny_llama: Path, length: int) -> None:
    config = EngineConfig(model=str(tiny_llama), dtype="float32", max_model_len=length)
    assert load_target(config).fewest_rows in (ROW_STEP, ROW_CLASS)


def test_attention_that_sums_few_rows_otherwise_keeps_the_padding(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target(EngineConfig(model=str(tiny_llama), dtype="float32"))
    monkeypatch.setattr("engine.target.probe_fewest_rows", lambda *_, like: ROW_STEP)
    monkeypatch.setattr("engine.target.are_rows_alike", lambda *_: False)
    assert target.fewest_rows == ROW_CLASS


@pytest.mark.parametrize("fewest", [ROW_STEP, ROW_CLASS])
def test_a_plain_step_has_the_fewest_rows(
    tiny_llama: Path, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(model=str(tiny_llama), dtype="float32", speculation="off")
    engine = load_engine(config)
    engine.target.fewest_rows = fewest  # in place of what was tried
    forward, numbers = engine.target.forward, []

    def spy(ids: Tensor, rows: Rows, logits_to_keep: int = 0) -> Verdict:
        numbers.append(len(ids))
        return forward(ids, rows, logits_to_keep)

    monkeypatch.setattr(engine.target, "forward", spy)
    engine.submit(Submit("a", [1, 2, 3], 4, SamplingParams(temperature=0.0), []))
    while engine.has_work:
        engine.step()
    assert set(numbers[1:]) == {fewest}  # behind the prompt's


def test_costs_are_measured_from_the_fewest_rows_on() -> None:
    assert row_counts(16, 64) == [16, 20, 24, 28, 32, 48, 64]
    assert row_counts(4, 24) == [4, 8, 12, 16, 20, 24]


def test_a_planner_knows_what_few_rows_take() -> None:
    plain = build_plan(ROOT_ONLY, 1, LIKE.device)
    forward = {4: 10.0, 16: 20.0}
    for fewest in (ROW_STEP, ROW_CLASS):
        costs = Costs(forward, {}, {}, {}, fewest_rows=fewest)
        assert Planner([plain], costs, {}).rate(plain, 1) == pytest.approx(1 / forward[fewest])
