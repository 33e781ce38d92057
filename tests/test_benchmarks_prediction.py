"""Predictions are edited as said, every case answers every prompt, and what differs is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import SMALL_TREE, save_random_drafter

from benchmarks.methods import Task
from benchmarks.prediction import Case, edited, load_engines, main, measure, predictions
from benchmarks.settings import Settings
from engine.messages import RequestOutput, SamplingParams

PROMPTS = [[3, 4, 5], list(range(2, 20))]


def test_edits_replace_leave_out_and_put_in_by_turns() -> None:
    answer = list(range(12))
    assert edited(answer, 0) == answer
    assert edited(answer, 4) == [0, 1, 0, 3, 4, 5, 7, 8, 9, 10, 8, 11]


def test_the_wrong_prediction_is_another_answer() -> None:
    assert [kinds["wrong"] for kinds in predictions([[1], [2], [3]])] == [[3], [1], [2]]


def test_every_case_answers_every_prompt_and_none_differs(tiny_llama: Path, tmp_path: Path) -> None:
    drafter = save_random_drafter(tiny_llama, tmp_path / "drafter", SMALL_TREE)
    settings = Settings(tiny_llama, drafter, ("ar",), (), max_tokens=20, dtype="float32")
    engines = load_engines(settings, 20)
    cases = measure(engines, PROMPTS, Task(20, SamplingParams(temperature=0.0), ()), repeats=2)
    assert [case.engine for case in cases] == ["plain", *["drafter"] * 5, *["no drafter"] * 5]
    assert {(case.tokens, case.differ) for case in cases} == {(80, 0)}
    right = [case for case in cases if case.prediction == "right"]
    assert all(case.steps < case.tokens and case.accepted > 0 for case in right)
    assert not any(case.accepted for case in cases if case.prediction == "none")


def test_an_answer_that_differs_is_counted() -> None:
    case = Case("plain", "none")
    case.add([RequestOutput("0", [1, 2], "length", 0, 0)], 1.0, [1, 3])
    assert (case.tokens, case.steps, case.differ) == (2, 1, 1)


def test_a_wrong_option_ends_with_one_line(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tiny_llama), "--repeats", "0"]) == 2
    assert capsys.readouterr().err == "prediction: --repeats must be at least 1, not 0\n"


def test_the_last_line_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--limit", "1", "--max-tokens", "8", "--repeats", "1", "--threads", "1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert len(json.loads(last)["cases"]) == 11
