"""From a pair of models to the trees that are fastest on this device.

1. Let the model answer the prompts, and record what the drafter names at every place (`recording`).
2. For each batch size: time forwards and passes alone, and the steps of a few trees (`step_times`).
3. Search the trees with the most predicted tokens per second (`tree_choice`).
4. Time the best of them, interleaved, beside the present tree, plain decoding, and the best
   dynamic drafts (`engine/selection.py`).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from drafter.config import DrafterError, Dynamic
from drafter.tuned import TunedTree
from engine.costs import measure_costs
from engine.draft_model import DraftModel
from engine.drafters import trees_of
from engine.engine import Engine
from engine.messages import Submit
from engine.rows import ROW_CLASS, ROW_STEP, round_up
from tree.replay import shares
from tree.search import Limits
from tree.topology import ROOT_ONLY, RankPath, Tree

from .concurrency import requests
from .loading import engine_config, engine_with, load_checked, prepare
from .machine import Machine, describe_machine
from .recording import chain, recorded
from .settings import BenchmarkError, Settings
from .step_times import StepModel, Timed, fit, time_engines
from .tree_choice import Candidate, Chooser

REPEATS = 12  # of each forward and draft that is timed alone
FEW = 4  # prompts that the constants of a batch size are fitted on, at least
TRIED = 3  # trees that are timed for each batch size: the best of so many numbers of passes
TRIED_DYNAMIC = 2

Plan = tuple[Tree, Dynamic | None]


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan, what was measured, and predicted, but for the present dynamic one.

    `roots` are the places that steps of the tree have their roots at; of a dynamic plan, those of
    the best tree.
    """

    name: str
    tree: Tree
    dynamic: Dynamic | None
    roots: Counter[RankPath]
    predicted: Candidate | None
    measured: Timed

    @property
    def error(self) -> float | None:
        """Of the predicted speed, as a share of the measured one."""
        if self.predicted is None:
            return None
        return 1e3 * self.predicted.rate / self.measured.tokens_per_second - 1.0

    def tuned(self, batch: int) -> TunedTree:
        """To be served so, with what was counted."""
        dynamic, measured = self.dynamic, self.measured
        if dynamic is not None:
            passes = round(measured.passes / measured.steps, 3)
            dynamic = msgspec.structs.replace(dynamic, tau=round(measured.tau, 3), passes=passes)
        counted = shares(self.roots)
        accepted = {path: counted.get(path, 0.0) for path in self.tree.paths[1:]}
        return TunedTree(self.tree, batch, accepted, dynamic)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One batch size: the device's times, and the trials, plain decoding first."""

    batch: int
    model: StepModel
    trials: list[Trial]

    @property
    def best(self) -> Trial:
        return max(self.trials, key=lambda trial: trial.measured.tokens_per_second)

    @property
    def fixed(self) -> Tree:
        """The fastest that is not dynamic."""
        trials = (trial for trial in self.trials if trial.dynamic is None)
        return max(trials, key=lambda trial: trial.measured.tokens_per_second).tree


@dataclass(frozen=True, slots=True)
class Tuning:
    """Everything that a run has to say. `tokens` are those of the recorded answers."""

    machine: Machine
    block_size: int
    sharpness: float
    prompts: int
    tokens: int
    batches: list[BatchResult]

    @property
    def trees(self) -> list[TunedTree]:
        return [one.best.tuned(one.batch) for one in self.batches]


def tune(settings: Settings, batches: Sequence[int], takes_guesses: bool = True) -> Tuning:
    """Record, measure, search, try; with guesses, where the drafter takes them (`engine/guesses`).

    Raises `BenchmarkError`.
    """
    load_average = os.getloadavg()[0]
    prompts, task = prepare(settings)
    submits = requests(prompts, task, len(prompts.prompts))
    if len(submits) < max(batches):
        raise BenchmarkError(f"--batches {max(batches)} takes as many prompts, not {len(submits)}")
    present = load_present(settings)
    context_length = prompts.longest + settings.max_tokens
    config = engine_config(settings, settings.drafter, context_length)
    engine = load_checked(msgspec.structs.replace(config, max_num_seqs=max(batches)), chain(1))
    assert engine.decoder.drafter is not None
    engine.decoder.drafter.takes_guesses &= takes_guesses
    tree = present[0].tree if present[0].dynamic is None else chain(1)
    tell(f"{len(submits)} answers, and what the drafter names at each of their tokens")
    chooser = recorded(engine, tree, [prompt.ids for prompt in prompts.prompts], task)
    results: list[BatchResult] = []
    for batch in sorted(batches):
        own = max((one for one in present if one.batch <= batch), key=lambda one: one.batch)
        results.append(tune_batch(engine, chooser, own, submits, batch))
        # Rows cost more the more sequences there are: larger batches take no larger trees.
        chooser.limits = replace(chooser.limits, nodes=results[-1].fixed.num_nodes)
    return Tuning(
        machine=describe_machine(engine.target.device, engine.target.dtype, load_average),
        block_size=chooser.limits.block_size,
        sharpness=chooser.sharpness,
        prompts=len(submits),
        tokens=sum(len(record) for record in chooser.records),
        batches=results,
    )


def tune_batch(
    engine: Engine, chooser: Chooser, present: TunedTree, submits: Sequence[Submit], batch: int
) -> BatchResult:
    """The plans for `batch` sequences at a time.

    The constants of the model are fitted to the pilots twice: in a short run, to search with, and
    in the run of the trials, so that what is predicted is for the machine as it was then.
    """
    tell(f"batch {batch}: forwards, passes, and steps of a few trees")
    model = bare_model(engine, chooser.limits, batch)
    pilots = pilot_trees(chooser)
    few = time_engines(
        engines_of(engine, [(tree, None) for tree in pilots], batch),
        submits[: max(FEW, 2 * batch)],
        batch,
    )
    model = fitted(model, chooser, pilots, few)
    plans = plans_to_try(chooser, present, pilots, model)
    tell(f"batch {batch}: {len(plans)} plans side by side")
    timed = dict(
        zip(plans, time_engines(engines_of(engine, plans, batch), submits, batch), strict=True)
    )
    model = fitted(model, chooser, pilots, [timed[tree, None] for tree in pilots])
    predictions = {(one.tree, one.dynamic): one for one in chooser.dynamic(model)}
    predictions |= {
        (tree, None): chooser.candidate(tree, model) for tree, own in plans if own is None
    }
    roots = chooser.search(model)[0].replay.roots
    trials = []
    for plan, name in plans.items():
        predicted = predictions.get(plan)
        own = predicted.replay.roots if predicted is not None and plan[1] is None else roots
        trials.append(Trial(name, *plan, own, predicted, timed[plan]))
    return BatchResult(batch, model, trials)


def plans_to_try(
    chooser: Chooser, present: TunedTree, pilots: Sequence[Tree], model: StepModel
) -> dict[Plan, str]:
    """The plans to time, plain decoding first, and what each is called."""
    limits, shape = chooser.limits, present.dynamic
    needed = present.tree.num_nodes
    if shape is not None:
        shape = msgspec.structs.replace(shape, tau=None, passes=None)
        needed = shape.num_verified
    names: dict[Plan, str] = {(tree, None): "pilot" for tree in pilots}
    if needed <= round_up(limits.nodes, ROW_STEP):
        names[present.tree, shape] = "present"
    names[ROOT_ONLY, None] = "plain"
    plans = dict(sorted(names.items(), key=lambda item: item[0][0].num_nodes))
    found = [one.tree for one in chooser.search(model) if (one.tree, None) not in names]
    plans |= dict.fromkeys([(tree, None) for tree in found[:TRIED]], "tuned")
    for one in chooser.dynamic(model)[:TRIED_DYNAMIC]:
        plans.setdefault((one.tree, one.dynamic), "dynamic")
    return plans


def bare_model(engine: Engine, limits: Limits, batch: int) -> StepModel:
    """The times of forwards and passes alone."""
    can_branch = not isinstance(engine.decoder.drafter, DraftModel)
    probe = probe_tree(limits) if can_branch else chain(limits.depth)
    (probing,) = engines_of(engine, [(probe, None)], batch)
    decoder = probing.decoder
    costs = measure_costs(decoder.target, decoder.drafter, [decoder.plan], batch, repeats=REPEATS)
    return StepModel(costs, batch, limits.block_size)


def fitted(
    model: StepModel, chooser: Chooser, pilots: Sequence[Tree], timed: Sequence[Timed]
) -> StepModel:
    """The model with its constants fitted to the pilots' steps."""
    pairs = zip(pilots, timed, strict=True)
    return fit(model, [(tree, chooser.replay(tree), own) for tree, own in pairs])


def pilot_trees(chooser: Chooser) -> list[Tree]:
    """Few rows and many, no pass and many: likely trees, whatever they cost."""
    limits = chooser.limits
    likely = chooser.likely_trees(chooser.all_roots())
    shallow = [t for t in likely if t.max_depth <= limits.block_size and t.num_nodes <= ROW_CLASS]
    wide = [t for t in likely if t.num_nodes <= max(1, 3 * limits.nodes // 4)]
    return list(dict.fromkeys([ROOT_ONLY, shallow[-1], wide[-1]]))


def engines_of(engine: Engine, plans: Iterable[Plan], batch: int) -> list[Engine]:
    """One for each plan, on the same target."""
    return [engine_with(engine, tree, batch, dynamic) for tree, dynamic in plans]


def load_present(settings: Settings) -> list[TunedTree]:
    """The drafter's trees as they are, by batch size from 1 on."""
    assert settings.drafter is not None
    try:
        first, *others = sorted(trees_of(str(settings.drafter)), key=lambda one: one.batch)
    except DrafterError as error:
        raise BenchmarkError(str(error)) from error
    return [replace(first, batch=1), *others]


def probe_tree(limits: Limits) -> Tree:
    """As deep as trees get, with two blocks in every later pass while there are nodes for them.

    K=2      0 ── 0 ── 0 ── 0
             └─── 1 ── 0
    """
    paths = list(chain(limits.depth).paths[1:])
    for top in range(limits.block_size, limits.depth, limits.block_size):
        beside = (*(0,) * (top - 1), 1)
        if len(paths) + 2 < limits.nodes:
            paths += [beside, (*beside, 0)]
    return Tree.from_paths(paths)


def tell(what: str) -> None:
    """Progress, on stderr."""
    print(f"tune: {what}", file=sys.stderr, flush=True)
