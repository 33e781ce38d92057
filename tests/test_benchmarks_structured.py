"""Every grammar is compiled and every case answers every prompt; what differs is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import save_random_drafter
from text_target import END, save_text_target

from benchmarks.loading import load, plain
from benchmarks.methods import Task
from benchmarks.settings import Settings
from benchmarks.structured import GRAMMARS, compile_ms, main, measure
from engine.messages import SamplingParams

PROMPTS = [[30, 40, 50], list(range(20, 40))]


def test_every_case_answers_every_prompt_and_none_differs(tmp_path: Path) -> None:
    target = save_text_target(tmp_path / "target")
    drafter = save_random_drafter(target, tmp_path / "drafter")
    settings = Settings(target, drafter, ("ar",), (), max_tokens=20, dtype="float32")
    engine = load(settings, drafter, 60)
    engines = {"plain": plain(engine), "falcon": engine}
    task = Task(20, SamplingParams(temperature=0.0), (END,))
    cases = measure(engines, PROMPTS, task, repeats=1)
    assert [(case.grammar, case.engine) for case in cases] == [
        (grammar, engine) for grammar in GRAMMARS for engine in engines
    ]
    assert {(case.answers, case.differ) for case in cases} == {(2, 0)}
    assert all(0 < case.steps <= case.tokens <= 40 for case in cases)
    assert not engine.has_work
    assert compile_ms(engine, GRAMMARS["regex"]) > 0  # type: ignore[arg-type]  # it has one
    assert not engine.has_work


def test_a_wrong_option_ends_with_one_line(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tiny_llama), "--repeats", "0"]) == 2
    assert capsys.readouterr().err == "structured: --repeats must be at least 1, not 0\n"
