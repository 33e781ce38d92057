"""`falcon tune`: what is predicted, what is chosen, what is written."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import SMALL_TREE, save_random_drafter
from test_benchmarks_command import target  # noqa: F401  # a fixture
from test_tree_search import PATHS

from benchmarks import tune
from benchmarks.step_times import StepModel, Timed, fit
from benchmarks.tree_choice import Chooser
from benchmarks.tuning import probe_tree
from drafter.tuned import load_trees
from engine.planner import Costs
from tree.replay import Replay, replay
from tree.search import Limits
from tree.tables import count_blocks
from tree.topology import ROOT_ONLY, Tree

CHEAP_ROWS = Costs({16: 10.0, 64: 11.0}, {1: 1.0}, {1: 0.5}, {1: 0.1})
DEAR_ROWS = Costs({16: 10.0, 64: 40.0}, {1: 1.0}, {1: 0.5}, {1: 0.1})
RECORDS = [[PATHS[n * n % len(PATHS)] for n in range(seed, 60 + seed)] for seed in range(5)]
LIMITS = Limits(nodes=32, depth=4, block_size=2)


def test_a_step_waits_for_the_sequence_with_the_most_rows() -> None:
    """Three of four steps have 16 rows of 16, the others 20: with two sequences 7 of 16 have 20."""
    tree = Tree.from_paths((rank,) for rank in range(15))
    steps = Replay(8, Counter({(): 4}), Counter({16: 3, 20: 1}))
    costs = Costs({16: 16.0, 64: 64.0}, *3 * [{1: 2.0, 2: 2.0}])
    assert StepModel(costs, 1, 2).step_ms(tree, steps) == pytest.approx(16 + 0.25 * 4 + 2)
    assert StepModel(costs, 2, 2).step_ms(tree, steps) == pytest.approx(32 + 7 / 16 * 8 + 2)


def test_the_constants_of_the_model_are_found_again() -> None:
    true = StepModel(DEAR_ROWS, 1, 2, slowdown=1.2, drafting=1.5, host=2.0)
    pilots = []
    for tree in (ROOT_ONLY, Tree.from_paths([[0]]), SMALL_TREE):
        own = replay(tree, RECORDS, 1)
        verify, draft = true.alone(tree, own)
        other = 1.5 * draft + 2.0
        pilots.append((tree, own, Timed(1, 10, 10 * 1.2 * verify, 10 * other, 20, 10)))
    found = fit(StepModel(DEAR_ROWS, 1, 2), pilots)
    assert (found.slowdown, found.drafting, found.host) == pytest.approx((1.2, 1.5, 2.0))
    tree = Tree.from_paths([[0], [1], [0, 0]])
    assert found.step_ms(tree, replay(tree, RECORDS, 1)) == pytest.approx(
        true.step_ms(tree, replay(tree, RECORDS, 1))
    )


def test_noise_gives_no_negative_constant() -> None:
    model = StepModel(CHEAP_ROWS, 1, 2)
    small = Tree.from_paths([[0]])
    for first, second in ((5.0, 1.0), (0.1, 9.0)):
        timed = [Timed(1, 1, 10.0, first, 1, 1), Timed(1, 1, 10.0, second, 1, 1)]
        trees = [small, SMALL_TREE]
        pilots = [(t, replay(t, RECORDS, 1), own) for t, own in zip(trees, timed, strict=True)]
        found = fit(model, pilots)
        assert found.drafting >= 0.0
        assert found.host >= 0.0


@pytest.mark.parametrize("max_rows", [8, 32])
def test_the_choice_is_the_fastest_of_all_likely_trees(max_rows: int) -> None:
    chooser = Chooser(RECORDS, LIMITS, max_rows)
    for costs in (CHEAP_ROWS, DEAR_ROWS):
        model = StepModel(costs, 1, 2)
        best = chooser.search(model)[0]
        likely = [chooser.candidate(t, model) for t in chooser.likely_trees(chooser.all_roots())]
        assert best.rate >= max(one.rate for one in likely)
        assert best.rate == pytest.approx(best.replay.tau / model.step_ms(best.tree, best.replay))


def test_dear_rows_make_small_trees_and_useless_drafts_none() -> None:
    chooser = Chooser(RECORDS, LIMITS, 32)
    cheap = chooser.search(StepModel(CHEAP_ROWS, 4, 2))[0].tree
    dear = chooser.search(StepModel(DEAR_ROWS, 4, 2))[0].tree
    assert cheap.num_nodes > dear.num_nodes
    silent = Chooser([[()] * 40], LIMITS, 32)
    assert [one.tree for one in silent.search(StepModel(CHEAP_ROWS, 1, 2))] == [ROOT_ONLY]


@pytest.mark.parametrize(("block_size", "blocks"), [(1, (1, 2, 2, 2)), (2, (1, 2)), (4, (1,))])
def test_the_probe_has_more_than_one_block_in_later_passes(
    block_size: int, blocks: tuple[int, ...]
) -> None:
    probe = probe_tree(replace(LIMITS, block_size=block_size))
    assert count_blocks(probe, block_size) == blocks
    assert probe.max_depth == 4


@pytest.fixture
def words(target: Path, tmp_path: Path) -> list[str]:  # noqa: F811  # the fixture
    """Models, prompts and limits of a run that takes a second."""
    drafter = save_random_drafter(target, tmp_path / "drafter")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("ABC", "HELLO", "WHY")))
    chosen = ["--model", target, "--drafter", drafter, "--prompts", prompts]
    return [str(w) for w in (*chosen, "--max-tokens", "16", "--dtype", "float32", "--threads", "1")]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    tune.add_arguments(parser)
    return tune.run(parser.parse_args(words))


def test_trees_can_be_kept_beside_new_ones(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    drafter = Path(words[3])
    before = load_trees(drafter)
    assert run(*words, "--batches", "1", "--temperature", "1", "--keep") == 0
    after = load_trees(drafter)
    assert after[: len(before)] == before
    assert len(after) - len(before) <= 1
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["batches"]
    assert found["best"] in [one.tree.to_json()["paths"] for one in after]
    assert run(*words, "--batches", "1", "--temperature", "1") == 0
    assert len(load_trees(drafter)) == 1


def test_plans_are_written_and_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    drafter = Path(words[3])
    assert run(*words, "--batches", "2,1") == 0
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[-1])
    assert found["prompts"] == 3
    assert found["settings"]["temperature"] == 0.0
    written = load_trees(drafter)
    assert [one.batch for one in written] == [one["batch"] for one in found["batches"]] == [1, 2]
    for tuned, told in zip(written, found["batches"], strict=True):
        assert tuned.tree.to_json()["paths"] == told["best"]
        names = [trial["name"] for trial in told["trials"]]
        assert names[0] == "plain"
        assert set(names) <= {"plain", "pilot", "present", "tuned", "dynamic"}
        fastest = max(told["trials"], key=lambda trial: trial["measured"]["tokens_per_second"])
        assert fastest["paths"] == told["best"]
        for trial in told["trials"]:
            predicted, measured = trial["predicted"], trial["measured"]
            speed = told["batch"] * measured["tau"] / measured["step_ms"]
            assert measured["tokens_per_second"] == pytest.approx(1e3 * speed, rel=1e-3)
            assert predicted is not None
            if trial["dynamic"] is None or told["batch"] == 1:
                assert predicted["tau"] == pytest.approx(measured["tau"], rel=1e-4)
    assert "present" in [trial["name"] for trial in found["batches"][0]["trials"]]
    assert "root" in output
    fixed = [
        max(
            (trial for trial in told["trials"] if trial["dynamic"] is None),
            key=lambda trial: trial["measured"]["tokens_per_second"],
        )
        for told in found["batches"]
    ]
    assert len(fixed[1]["paths"]) <= max(1, len(fixed[0]["paths"]))
    assert [one.dynamic is None for one in written] == [
        told["dynamic"] is None for told in found["batches"]
    ]


def test_a_dry_run_writes_nothing(words: list[str]) -> None:
    before = load_trees(Path(words[3]))
    assert run(*words, "--batches", "1", "--limit", "1", "--dry-run") == 0
    assert load_trees(Path(words[3])) == before


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--batches", "0"], "--batches '0': expected whole numbers above 0"),
        (["--batches", "8"], "--batches 8 takes as many prompts, not 3"),
        (["--temperature", "3"], "--temperature 3.0 must be from 0 to 2"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(
    words: list[str], more: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, *more) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_pair_without_a_drafter_and_a_broken_plan_are_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words[:2], *words[4:]) == 2
    assert "--drafter is needed" in capsys.readouterr().err
    (Path(words[3]) / "plan.json").write_text("{}")
    assert run(*words, "--batches", "1") == 2
    assert "plan.json holds no legal tree" in capsys.readouterr().err
