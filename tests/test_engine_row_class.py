"""How few rows a forward may have is found out, not assumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.row_class import probe_fewest_rows
from engine.rows import ROW_CLASS, ROW_STEP, Rows
from engine.target import load_target

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


@torch.inference_mode()
def test_a_context_shorter_than_the_probe_is_enough(tiny_llama: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), dtype="float32", max_model_len=4)
    assert load_target(config).fewest_rows in (ROW_STEP, ROW_CLASS)
