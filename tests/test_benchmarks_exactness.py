"""The rows that differ from plain decoding are counted, on the chain and off it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes import SMALL_TREE

from benchmarks.exactness import Count, count_rows, main
from engine.config import EngineConfig
from engine.target import load_target

PROMPTS = [[3, 4, 5], list(range(2, 40))]


def test_chain_rows_are_those_of_plain_decoding(tiny_llama: Path) -> None:
    target = load_target(EngineConfig(model=str(tiny_llama), dtype="float32", max_num_seqs=1))
    counts = count_rows(target, SMALL_TREE, PROMPTS)
    assert (counts["chain"].rows, counts["chain"].differing) == (8, 0)
    assert counts["branches"].rows == 14
    assert counts["branches"].largest < 1e-5


def test_a_row_that_differs_is_counted_with_its_pick() -> None:
    count = Count()
    same, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.5, 3.0])
    count.add(same, same)
    count.add(other, same)
    assert count == Count(rows=2, differing=1, picks=1, largest=1.5)


def test_a_model_without_a_drafter_ends_with_one_line(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tiny_llama)]) == 2
    assert capsys.readouterr().err == "exactness: --drafter is needed: its tree is verified\n"
