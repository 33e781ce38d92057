"""From a configuration to an engine: models, plan, planner; and what the operator is told."""

from __future__ import annotations

from pathlib import Path

import torch

from drafter.checkpoint import check_fit, load_drafter, load_tree, target_fingerprint
from drafter.config import DrafterError
from drafter.drafting import FalconDrafter
from drafter.heads import AnyHead
from drafter.medusa import MedusaDrafter, MedusaHead
from drafter.model import MAX_FED_BACK
from drafter.plan import DraftPlan, build_plan
from drafter.protocol import Drafter
from tree.drawing import summarize
from tree.topology import ROOT_ONLY, Tree

from .config import EngineConfig
from .costs import measure_costs
from .engine import Engine
from .grammars import Grammars
from .messages import Ready, SamplingParams, Submit
from .packing import pack_linears
from .planner import Planner, prior_reach, subtrees
from .sampling import Sampler
from .speculative import MAX_CPU_ROWS, SpeculativeDecoder
from .target import Target, load_target


def load_engine(config: EngineConfig, tree: Tree | None = None) -> Engine:
    """Load target and drafter; `tree` overrides the drafter's own plan.

    Raises `TargetError` or `DrafterError` with what is wrong.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    target = load_target(config)
    sampler = Sampler(target.vocab_size, target.device)
    if config.drafter is None or config.speculation == "off":
        drafter, plan = None, build_plan(ROOT_ONLY, 1, target.device)
    else:
        head = load_drafter(config.drafter)
        fingerprint = target_fingerprint(config.model)
        check_fit(head.config, target.hidden_size, target.vocab_size, fingerprint)
        tree = load_tree(config.drafter) if tree is None else tree
        check_rows(tree, target)
        plan = build_plan(tree, head.config.block_size, target.device)
        prepare_head(head, target)
        drafter = fit_drafter(head, plan, target, config.max_num_seqs) if plan.passes else None
    decoder = SpeculativeDecoder(target, drafter, plan, sampler)
    row_limit = MAX_CPU_ROWS if config.deterministic and target.device.type == "cpu" else None
    target.prefill_rows = row_limit or target.prefill_rows
    planner = None
    if config.speculation == "auto":
        planner = make_planner(decoder, config.max_num_seqs, row_limit)
    predicts = config.speculation != "off"
    ngrams = config.prompt_lookup if predicts and drafter is None else None
    grammars = Grammars(Path(config.model), target.vocab_size, target.end_ids)
    return Engine(
        target, decoder, config.max_num_seqs, planner, row_limit, predicts, grammars, ngrams
    )


def make_planner(decoder: SpeculativeDecoder, num_slots: int, row_limit: int | None) -> Planner:
    """A planner over the parts of the decoder's plan, with this device's times."""
    target, drafter, plan = decoder.target, decoder.drafter, decoder.plan
    block_size = 1 if drafter is None else drafter.block_size
    reach = prior_reach(plan.tree)
    plans = [
        plan if part == plan.tree else build_plan(part, block_size, target.device)
        for part in subtrees(plan.tree, block_size, reach)
    ]
    return Planner(plans, measure_costs(target, drafter, plan, num_slots, row_limit), reach)


def check_rows(tree: Tree, target: Target) -> None:
    """Refuse a tree that takes more rows than the CPU computes with plain decoding's bits."""
    limited = target.device.type == "cpu" and not target.exact_branches
    if limited and tree.num_nodes > MAX_CPU_ROWS:
        raise DrafterError(
            f"the drafter's tree has {tree.num_nodes} nodes; in {target.dtype} on a CPU at most "
            f"{MAX_CPU_ROWS} keep the output unchanged: use a smaller tree or float32"
        )


def prepare_head(head: AnyHead, target: Target) -> None:
    """Bring a loaded head to where and how the target computes, its weights laid out to draft."""
    head.to(target.device, target.dtype)
    if not isinstance(head, MedusaHead):
        head.arrange()
    pack_linears(head)


def fit_drafter(head: AnyHead, plan: DraftPlan, target: Target, num_slots: int) -> Drafter:
    """A drafter with slots as long as the target's and room for the plan's block rows."""
    if isinstance(head, MedusaHead):
        return MedusaDrafter(head, num_slots, target.features)
    capacity = target.context_length + 2 * MAX_FED_BACK  # provisional and drafted tokens
    return FalconDrafter(head, target.parts, num_slots, capacity, plan.num_rows)


def warm_up(engine: Engine) -> None:
    """Run one short request, so that the first user does not pay for first-call set-up."""
    request = Submit("warm-up", [1, 2, 3], 8, SamplingParams(temperature=0.0), [])
    engine.submit(request)
    while engine.has_work:
        engine.step()


def describe(engine: Engine, config: EngineConfig) -> Ready:
    """What the operator is told at start."""
    return Ready(
        target=config.model,
        drafter=config.drafter,
        plan=_plan(engine),
        dtype=str(engine.target.dtype).removeprefix("torch."),
        device=str(engine.target.device),
        context_length=engine.target.context_length,
        max_num_seqs=config.max_num_seqs,
        scores_prompts=engine.target.head is not None,
        looks_up=engine.ngrams is not None,
    )


def _plan(engine: Engine) -> str:
    if engine.ngrams is not None:
        own = engine.ngrams
        return f"prompt lookup by n-grams of {own.longest} to {own.shortest} tokens"
    if engine.decoder.drafter is None:
        return "none"
    plan = engine.decoder.plan
    whole = f"{summarize(plan.tree)}, {len(plan.passes)} passes"
    return whole if engine.planner is None else f"up to {whole}"
