"""The decoding tree that is fastest for one drafter on this machine: its `plan.json`.

    python -m benchmarks.calibrate --model DIR --drafter DIR --prompts FILE --limit 8 --write

1. Draft wide caterpillars and count which candidate the target picks, by depth and rank.
2. Grow the likeliest tree for each number of nodes and of drafter passes.
3. Time every tree, interleaved, on the same prompts; the most tokens per second wins.

Calibrate on other prompts than those that are reported. Time a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from drafter.checkpoint import PLAN_FILE
from engine.messages import SamplingParams
from tree.drawing import summarize
from tree.search import Acceptance, expected_accept_length, grow
from tree.topology import ROOT_ONLY, Tree

from .acceptance import count_acceptance
from .command import USER_ERROR, add_model_arguments
from .comparison import run_trials
from .figures import Figures, figures
from .loading import engine_with, head_of, load, prepare
from .methods import EngineMethod, Method
from .settings import BenchmarkError, Settings, choose_pair

BUDGETS = (16, 20, 24, 32)  # nodes with the root; rows are padded to 16 and 32 by the engine
MAX_PASSES = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tree, what was predicted for it and what was measured."""

    tree: Tree
    num_passes: int
    predicted_tau: float
    measured: Figures


@dataclass(frozen=True, slots=True)
class Calibration:
    """`acceptance` [depth - 1][rank], and the candidates, fastest first."""

    acceptance: Acceptance
    candidates: list[Candidate]

    @property
    def best(self) -> Tree:
        return self.candidates[0].tree


def grow_candidates(acceptance: Acceptance, block_size: int) -> list[Tree]:
    """The likeliest trees by budget and passes, each once; no speculation is one of them."""
    trees = [ROOT_ONLY]
    for passes in range(1, MAX_PASSES + 1):
        trees += [grow(acceptance[: passes * block_size], budget) for budget in BUDGETS]
    return list(dict.fromkeys(trees))


def calibrate(settings: Settings) -> Calibration:
    """Count, grow, time. Raises `BenchmarkError`."""
    prompts, task = prepare(settings)
    engine = load(settings, settings.drafter, prompts.longest + settings.max_tokens)
    head = head_of(engine)
    block_size = head.config.block_size
    ids = [prompt.ids for prompt in prompts.prompts]
    acceptance = count_acceptance(engine, head, MAX_PASSES * block_size, ids, task)
    trees = grow_candidates(acceptance, block_size)
    methods: list[Method] = [
        EngineMethod(str(number), engine_with(engine, tree, head), task)
        for number, tree in enumerate(trees)
    ]
    trials = run_trials(settings, methods, prompts)
    candidates = [
        Candidate(
            tree=tree,
            num_passes=-(-tree.max_depth // block_size),
            predicted_tau=1 + expected_accept_length(acceptance, tree),
            measured=figures(trials, method.name),
        )
        for tree, method in zip(trees, methods, strict=True)
    ]
    candidates.sort(key=lambda one: -one.measured.tokens_per_second)
    return Calibration(acceptance, candidates)


def show(calibration: Calibration) -> None:
    """Acceptance by depth, then the candidates, fastest first."""
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    for depth, row in enumerate(calibration.acceptance, start=1):
        console.print(f"depth {depth}: " + "  ".join(f"{rate:.3f}" for rate in row))
    table = Table(caption="tau with the bonus token; ms of a whole step", caption_justify="left")
    for heading in ("tree", "passes", "predicted tau", "measured tau", "ms/step", "tok/s"):
        table.add_column(heading, justify="left" if heading == "tree" else "right", no_wrap=True)
    for one in calibration.candidates:
        own = one.measured
        table.add_row(
            *(summarize(one.tree), str(one.num_passes), f"{one.predicted_tau:.2f}"),
            *(f"{own.tau:.2f}", f"{own.ms.step:.2f}", f"{own.tokens_per_second:.1f}"),
        )
    console.print(table)


def settings_from(args: argparse.Namespace) -> Settings:
    """Check what was typed. Raises `BenchmarkError`."""
    model, drafter = choose_pair(args.model, args.drafter)
    return Settings(
        model=model,
        drafter=drafter,
        methods=("falcon",),
        prompts=tuple(args.prompts),
        max_tokens=args.max_tokens,
        sampling=SamplingParams(temperature=args.temperature, seed=args.seed),
        dtype=args.dtype,
        device=args.device,
        repeats=args.repeats,
        limit=args.limit,
        threads=args.threads,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate one pair; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibrate")
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--write", action="store_true", help="put the best tree into the drafter")
    args = parser.parse_args(argv)
    try:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
        settings = settings_from(args)
        calibration = calibrate(settings)
    except BenchmarkError as error:
        print(f"calibrate: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    show(calibration)
    if args.write and settings.drafter is not None:
        write_plan(calibration.best, settings.drafter)
    return 0


def write_plan(tree: Tree, drafter: Path) -> None:
    """Replace the drafter's `plan.json`, whole or not at all."""
    fresh = drafter / f"{PLAN_FILE}.new"
    fresh.write_text(json.dumps(tree.to_json()) + "\n")
    os.replace(fresh, drafter / PLAN_FILE)
    print(f"wrote {drafter / PLAN_FILE}: {summarize(tree)}")


if __name__ == "__main__":
    sys.exit(main())
