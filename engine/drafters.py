"""From a drafter's folder to a drafter with slots beside a target, and the plan it starts with."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from drafter.checkpoint import (
    check_fit,
    load_config,
    load_drafter,
    target_fingerprint,
)
from drafter.config import DrafterError, LookaheadConfig
from drafter.drafting import FalconDrafter
from drafter.heads import AnyHead
from drafter.lookahead import LookaheadDrafter, lookahead_tree
from drafter.medusa import MedusaDrafter, MedusaHead
from drafter.model import MAX_FED_BACK
from drafter.plan import DraftPlan, build_plan
from drafter.protocol import Drafter
from drafter.tuned import TunedTree, has_plan, load_trees
from tree.topology import Tree

from .config import EngineConfig
from .draft_model import DraftModel, check_is_chain
from .packing import pack_linears, round_linears
from .pretrained import TargetError
from .speculative import MAX_CPU_ROWS
from .target import Target, load_target

# For a draft model without a plan of its own.
DEFAULT_CHAIN = Tree.from_paths([(0,) * depth for depth in range(1, 6)])


def load_drafting(
    config: EngineConfig, folder: str, target: Target, tree: Tree | None
) -> tuple[Drafter | None, list[DraftPlan]]:
    """The drafter that `folder` describes, and its plans, that drafts for the fewest sequences
    first; or the one of `tree`.

    None where no plan is to draft. Raises `DrafterError` for one that does not fit.
    """
    if is_model(folder):
        return _load_model(config, folder, target, tree)
    if isinstance(method := load_config(folder), LookaheadConfig):
        if tree not in (None, lookahead_tree(method)):
            raise DrafterError("lookahead decoding has a tree of its own: its window and n-grams")
        return make_lookahead(method, target, config.max_num_seqs)
    head = load_drafter(folder)
    fingerprint = target_fingerprint(config.model)
    check_fit(head.config, target.hidden_size, target.vocab_size, fingerprint)
    plans = _plans(folder, tree, head.config.block_size, target)
    prepare_head(head, target)
    if not any(plan.passes for plan in plans):
        return None, plans[:1]
    roomiest = max(plans, key=lambda plan: plan.num_rows)
    return fit_drafter(head, roomiest, target, config.max_num_seqs), plans


def _plans(folder: str, tree: Tree | None, block_size: int, target: Target) -> list[DraftPlan]:
    trees = trees_of(folder) if tree is None else [TunedTree(tree)]
    ordered = sorted(trees, key=lambda one: one.batch)
    plans = [build_plan(one.tree, block_size, target.device, one.dynamic) for one in ordered]
    check_rows(max(plan.num_verified for plan in plans), target)
    return sorted(plans, key=lambda plan: not plan.passes)  # where only some draft, these first


def is_model(folder: str) -> bool:
    """Whether a folder holds a transformers model, and not a head that `falcon train` made."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def trees_of(folder: str) -> list[TunedTree]:
    """Those of `plan.json`, or what is usual for the kind. Raises `DrafterError`."""
    if is_model(folder) and not has_plan(folder):
        return [TunedTree(DEFAULT_CHAIN)]
    return load_trees(folder)


def make_lookahead(
    method: LookaheadConfig, target: Target, num_slots: int
) -> tuple[Drafter, list[DraftPlan]]:
    """The drafter and its one plan; raises `DrafterError` for a window too large for the target."""
    tree = lookahead_tree(method)
    check_rows(tree.num_nodes, target)
    drafter = LookaheadDrafter(method, num_slots)
    return drafter, [build_plan(tree, drafter.block_size, target.device)]


def _load_model(
    config: EngineConfig, folder: str, target: Target, tree: Tree | None
) -> tuple[Drafter | None, list[DraftPlan]]:
    plans = _plans(folder, tree, DraftModel.block_size, target)
    for plan in plans:
        check_is_chain(plan.tree)
    if not any(plan.passes for plan in plans):
        return None, plans[:1]
    own = msgspec.structs.replace(
        config, model=folder, max_model_len=target.context_length, tensor_parallel_size=1
    )
    tokens = [vocabulary(place) for place in (folder, config.model)]
    if None not in tokens and tokens[0] != tokens[1]:
        raise DrafterError("the draft model has another tokenizer than the target")
    try:
        model = load_target(own, drafts=True)
    except TargetError as error:
        raise DrafterError(f"the draft model: {error}") from error
    if model.vocab_size != target.vocab_size:
        raise DrafterError(
            f"the draft model has {model.vocab_size} output rows, the target {target.vocab_size}: "
            "both must be alike, and of one tokenizer"
        )
    return DraftModel(model, config.max_num_seqs), plans


def vocabulary(folder: str) -> dict[str, int] | None:
    """The tokens of the folder's tokenizer; None where it is not in the usual file."""
    file = Path(folder) / "tokenizer.json"
    return Tokenizer.from_file(str(file)).get_vocab() if file.is_file() else None


def check_rows(num_verified: int, target: Target) -> None:
    """Refuse a tree that takes more rows than the CPU computes with plain decoding's bits."""
    if target.device.type == "cpu" and num_verified > MAX_CPU_ROWS:
        raise DrafterError(
            f"the drafter's plan verifies {num_verified} nodes; on a CPU at most {MAX_CPU_ROWS} "
            "keep the output unchanged: use a smaller tree"
        )


def prepare_head(head: AnyHead, target: Target) -> None:
    """Bring a loaded head to where and how the target computes, its weights laid out to draft."""
    head.to(target.device, target.dtype)
    if not isinstance(head, MedusaHead):
        head.arrange()
    pack_linears(head)
    round_linears(head)


def fit_drafter(head: AnyHead, plan: DraftPlan, target: Target, num_slots: int) -> Drafter:
    """A drafter with slots as long as the target's and room for the plan's block rows."""
    if isinstance(head, MedusaHead):
        return MedusaDrafter(head, num_slots, target.features)
    capacity = target.context_length + 2 * MAX_FED_BACK  # provisional and drafted tokens
    return FalconDrafter(head, target.parts, num_slots, capacity, plan.num_rows)


def refit(drafter: Drafter, plan: DraftPlan, target: Target, num_slots: int) -> Drafter:
    """Another drafter with the same weights, for another plan and other slots.

    At most as many slots as the first one was loaded with. Raises `DrafterError` for a drafter that
    has no plan but its own.
    """
    other: Drafter
    if isinstance(drafter, DraftModel):
        check_is_chain(plan.tree)
        other = DraftModel(drafter.model, num_slots)
    elif isinstance(drafter.head, AnyHead):
        other = fit_drafter(drafter.head, plan, target, num_slots)
    else:
        raise DrafterError("lookahead decoding has a tree of its own: its window and n-grams")
    other.takes_guesses = drafter.takes_guesses
    return other
