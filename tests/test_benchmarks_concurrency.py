"""The concurrency benchmark: figures on steps made by hand, the command on a tiny random pair."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import save_random_drafter
from tiny_chat import save_chat_target

from benchmarks import concurrency
from benchmarks.settings import BenchmarkError
from benchmarks.throughput import Recording, figures, full_steps, level_result, share_differing
from engine.messages import FinishReason, RequestOutput, StepReport


def output(
    request: str,
    tokens: Sequence[int],
    end: FinishReason | None = None,
    drafted: int = 0,
) -> RequestOutput:
    accepted = max(0, len(tokens) - 1)
    return RequestOutput(request, list(tokens), end, drafted, accepted)


def step(*outputs: RequestOutput, computed: int = 0, cached: int = 0) -> StepReport:
    return StepReport(list(outputs), 0, 0, computed_tokens=computed, cached_tokens=cached)


# Two at a time: a and b, then c when b has ended. When a has ended too, c is alone: not counted.
RECORDING = Recording(
    level=2,
    submitted={"a": 10.0, "b": 10.0, "c": 12.0},
    steps=[
        (11.0, step(computed=20)),
        (12.0, step(output("a", [1, 2, 3], drafted=4), output("b", [7], "stop", drafted=4))),
        (
            14.0,
            step(output("a", [4], "length", drafted=1), output("c", [5, 6]), computed=9, cached=11),
        ),
        (99.0, step(output("c", [8, 9], "length", drafted=7))),
    ],
)


def test_speeds_are_those_of_the_time_in_which_all_were_there() -> None:
    assert len(full_steps(RECORDING)) == 3
    found = figures(RECORDING)
    assert found.tokens_per_second == pytest.approx(7 / (14.0 - 10.0))
    assert found.step_ms == pytest.approx(4000 / 3)
    assert found.nodes == pytest.approx((4 + 4 + 1 + 0) / 4)
    assert found.tau == pytest.approx(7 / 4)
    assert found.first_token_ms == pytest.approx(2000)
    assert found.cached == pytest.approx(11 / 40)


def test_answers_are_compared_to_their_ends() -> None:
    answers = RECORDING.answers()
    assert answers == {"a": [1, 2, 3, 4], "b": [7], "c": [5, 6, 8, 9]}
    assert share_differing(answers, answers) == 0.0
    assert share_differing(answers, answers | {"c": [5, 6, 8]}) == pytest.approx(1 / 3)


def test_a_level_is_summed_up_by_medians() -> None:
    def recording(seconds: float, token: int) -> Recording:
        report = step(output("a", [token, 2], "stop"), computed=1)
        return Recording(1, {"a": 0.0}, [(seconds, report)])

    auto = [recording(seconds, 1) for seconds in (1.0, 2.0, 8.0)]
    off = [recording(seconds, token) for seconds, token in ((4.0, 1), (4.0, 9), (1.0, 1))]
    found = level_result({"auto": auto, "off": off})
    assert found.engines["auto"].tokens_per_second == pytest.approx(1.0)
    assert found.speeds["auto"] == pytest.approx([2.0, 1.0, 0.25])
    assert found.ratio == pytest.approx(2.0)
    assert found.differing == pytest.approx(1 / 3)


def test_a_failed_request_ends_the_benchmark() -> None:
    failed = Recording(1, {"a": 0.0}, [(1.0, step(output("a", [], "error")))])
    with pytest.raises(BenchmarkError, match="the engine failed"):
        figures(failed)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def drafter(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_drafter(target, tmp_path_factory.mktemp("drafter"))


def test_the_last_line_is_one_document_with_every_level(
    target: Path, drafter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, picture = tmp_path / "prompts.jsonl", tmp_path / "levels.png"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("once", "upon a")))
    pair = ["--model", target, "--drafter", drafter, "--prompts", prompts, "--dtype", "float32"]
    limits = ["--max-tokens", "12", "--repeats", "2", "--levels", "1,3", "--max-num-seqs", "3"]
    words = [*pair, *limits, "--deterministic", "--plot", picture]
    assert concurrency.main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert "differing" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert found["settings"]["levels"] == [1, 3]
    assert found["settings"]["deterministic"] is True
    assert [level["requests"] for level in found["levels"]] == [4, 12]
    for level in found["levels"]:
        assert level["differing"] == 0.0
        assert level["engines"]["off"]["nodes"] == 0.0
        assert level["engines"]["off"]["tau"] == 1.0
        assert len(level["speeds"]["auto"]) == 2
        speeds = {name: own["tokens_per_second"] for name, own in level["engines"].items()}
        assert level["ratio"] == pytest.approx(speeds["auto"] / speeds["off"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--levels", "1,two"], "--levels '1,two': expected whole numbers above 0"),
        (["--levels", "0"], "--levels '0': expected"),
        (["--levels", "2,2"], "each once"),
        (["--levels", "1,32"], "--levels 32 is more than --max-num-seqs 16"),
        (["--levels", "4", "--requests", "3"], "--requests 3 must be 0 or at least 4"),
        (["--repeats", "0"], "--repeats must be at least 1, not 0"),
        ([], "--drafter is needed"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(
    words: list[str],
    complaint: str,
    target: Path,
    drafter: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = ["--model", str(target), *(["--drafter", str(drafter)] if words else [])]
    assert concurrency.main([*pair, *words]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.startswith("concurrency: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
