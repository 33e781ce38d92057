"""From a configuration to an engine: models, plan, planner; and what the operator is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drafter.plan import DraftPlan, build_plan
from drafter.protocol import Watcher
from drafter.tuned import TunedTree, has_plan, load_trees
from tree.topology import ROOT_ONLY, RankPath, Tree

from .config import EngineConfig
from .costs import measure_costs
from .drafters import load_drafting
from .engine import Engine
from .grammars import Grammars
from .messages import Ready, SamplingParams, Submit
from .planner import Planner, prior_reach, subtrees
from .ranks import share_threads
from .sampling import Sampler
from .speculative import MAX_CPU_ROWS, SpeculativeDecoder
from .target import Target, load_target


def load_engine(config: EngineConfig, tree: Tree | None = None) -> Engine:
    """Load target and drafter; `tree` overrides the drafter's own trees.

    Raises `TargetError` or `DrafterError` with what is wrong.
    """
    share_threads(config)
    target = load_target(config)
    try:
        return _engine_on(target, config, tree)
    except BaseException:
        target.close()
        raise


def _engine_on(target: Target, config: EngineConfig, tree: Tree | None) -> Engine:
    sampler = Sampler(target.vocab_size, target.device)
    if config.drafter is None or config.speculation == "off":
        drafter, plans = None, [build_plan(ROOT_ONLY, 1, target.device)]
    else:
        drafter, plans = load_drafting(config, config.drafter, target, tree)
    plan, *others = plans
    decoder = SpeculativeDecoder(target, drafter, plan, sampler, others)
    row_limit = MAX_CPU_ROWS if config.deterministic and target.device.type == "cpu" else None
    target.prefill_rows = row_limit or target.prefill_rows
    planner = None
    if config.speculation == "auto":
        trees = own_trees(config.drafter, decoder) if tree is None else []
        planner = make_planner(decoder, trees, config.max_num_seqs, row_limit)
    predicts = config.speculation != "off"
    # Beside a drafter it takes measured costs to choose between the two.
    can_look_up = predicts and (drafter is None or planner is not None)
    ngrams = config.prompt_lookup if can_look_up else None
    grammars = Grammars(Path(config.model), target.vocab_size, target.end_ids)
    return Engine(
        target, decoder, config.max_num_seqs, planner, row_limit, predicts, grammars, ngrams
    )


def own_trees(folder: str | None, decoder: SpeculativeDecoder) -> list[TunedTree]:
    """The trees that the drafter was tuned to, but for one that learns from a tree of its own."""
    drafter = decoder.drafter
    if drafter is None or folder is None or isinstance(drafter, Watcher) or not has_plan(folder):
        return []
    return load_trees(folder)


def make_planner(
    decoder: SpeculativeDecoder, trees: Sequence[TunedTree], num_slots: int, row_limit: int | None
) -> Planner:
    """A planner over the decoder's plans and parts of their largest tree, with this device's times.

    `trees` tell what was counted when they were tuned.
    """
    target, drafter = decoder.target, decoder.drafter
    own = [decoder.plan, *decoder.others]
    counted: dict[RankPath, float] = {}
    for one in sorted(trees, key=lambda one: one.batch):  # the first one's counts win
        counted = dict(one.accepted) | counted
    reach = prior_reach([plan.tree for plan in own], counted)
    # A tree that was tuned for several numbers of sequences is one plan, and of one estimate.
    plans = list({_shape(plan): plan for plan in reversed(own) if plan.passes}.values())[::-1]
    parts = [ROOT_ONLY]
    if drafter is not None and not isinstance(drafter, Watcher):  # a watcher learns from all of it
        largest = max((plan.tree for plan in own), key=lambda tree: tree.num_nodes)
        found = subtrees(largest, drafter.block_size, reach)
        parts = [part for part in found if part.num_nodes <= decoder.most_verified]
    fixed = {plan.tree for plan in plans if plan.dynamic is None}
    block_size = 1 if drafter is None else drafter.block_size
    plans = [
        *(build_plan(tree, block_size, target.device) for tree in parts if tree not in fixed),
        *plans,
    ]
    longest = min(decoder.max_rows, row_limit or decoder.max_rows)  # of a known text
    costs = measure_costs(target, drafter, own, num_slots, row_limit, longest=longest)
    return Planner(plans, costs, reach)


def _shape(plan: DraftPlan) -> tuple[Tree, int, float]:
    return plan.tree, plan.num_verified, plan.dynamic.least_trust if plan.dynamic else 0.0


def warm_up(engine: Engine) -> None:
    """Run one short request, so that the first user does not pay for first-call set-up."""
    request = Submit("warm-up", [1, 2, 3], 8, SamplingParams(temperature=0.0), [])
    engine.submit(request)
    while engine.has_work:
        engine.step()


def describe(engine: Engine, config: EngineConfig) -> Ready:
    """What the operator is told at start."""
    ranks = config.tensor_parallel_size
    return Ready(
        target=config.model,
        drafter=config.drafter,
        plan=drafting_of(engine),
        dtype=str(engine.target.dtype).removeprefix("torch."),
        device=f"{f'{ranks} x ' if ranks > 1 else ''}{engine.target.device}",
        context_length=engine.target.context_length,
        max_num_seqs=config.max_num_seqs,
        scores_prompts=engine.target.head is not None,
        looks_up=engine.policy.ngrams is not None,
    )


def drafting_of(engine: Engine) -> str:
    """What an engine drafts, for people."""
    ways = []
    if engine.decoder.drafter is not None:
        plan = engine.decoder.plan
        may_be_less = plan.dynamic is None and engine.policy.planner is not None
        ways.append(f"up to {plan.summary}" if may_be_less else plan.summary)
    if engine.policy.ngrams is not None:
        sizes = engine.policy.ngrams.prompt_lookup_max, engine.policy.ngrams.prompt_lookup_min
        ways.append("prompt lookup by n-grams of {} to {} tokens".format(*sizes))
    return "; ".join(ways) or "none"
