"""Models, tokenizer and limits for a benchmark, loaded from folders; nothing asks a hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from drafter.config import DrafterError, Dynamic, LookaheadConfig
from drafter.plan import DraftPlan, build_plan
from drafter.protocol import Drafter
from drafter.tuned import load_trees
from engine.config import EngineConfig, NGrams
from engine.drafters import load_drafting, make_lookahead, refit
from engine.engine import Engine
from engine.loading import load_engine, make_planner, own_trees
from engine.messages import SamplingParams
from engine.pretrained import TargetError, choose_device, choose_dtype
from engine.sampling import Sampler
from engine.speculative import SpeculativeDecoder
from tree.topology import ROOT_ONLY, Tree

from .methods import EngineMethod, HuggingFaceMethod, Method, Task
from .prompts import PromptSet, load_prompts
from .settings import BenchmarkError, Settings


def prepare(settings: Settings) -> tuple[PromptSet, Task]:
    """The prompts that fit the model, and what to ask for each. Raises `BenchmarkError`."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(settings.model, local_files_only=True)
        config = AutoConfig.from_pretrained(settings.model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{settings.model} cannot be loaded: {error}") from error
    context_length = getattr(config, "max_position_embeddings", 0) or 2048
    longest = context_length - settings.max_tokens
    prompts = load_prompts(settings.prompts, tokenizer, longest, settings.limit)
    ends = end_ids(settings.model, config, tokenizer)
    return prompts, Task(settings.max_tokens, settings.sampling, ends)


def end_ids(folder: Path, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer: those of the generation config (or config) and of the tokenizer."""
    configured = getattr(config, "eos_token_id", None)
    if (folder / "generation_config.json").is_file():
        own = GenerationConfig.from_pretrained(folder, local_files_only=True)
        configured = own.eos_token_id if own.eos_token_id is not None else configured
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None}))


def load_methods(settings: Settings, task: Task, context_length: int) -> list[Method]:
    """The asked methods, in order, with room for `context_length` tokens."""
    methods: dict[str, Method] = {}
    if "hf" in settings.methods:
        methods["hf"] = HuggingFaceMethod(load_model(settings), task)
    own = [name for name in settings.names if name != "hf"]
    if own:
        base = load(settings, None, context_length)
        for name in own:
            methods[name] = EngineMethod(name, variant(base, name, settings), task)
    return [methods[name] for name in settings.names]


def variant(base: Engine, method: str, settings: Settings) -> Engine:
    """An engine on the same target and KV slots with another way of drafting.

    Two of them must not run at the same time. Raises `BenchmarkError` for a drafter that does not
    fit.
    """
    if (drafter := settings.drafter_of(method)) is None:
        if method == "lookahead":
            own, plans = make_lookahead(LookaheadConfig(), base.target, 1)
            return drafting(base, own, plans[0])
        return looking_up(base) if method == "pld" else plain(base)
    config = engine_config(settings, None, base.target.context_length)
    try:
        tree = load_trees(drafter.folder)[0].tree.chain() if drafter.kind == "chain" else None
        loaded, plans = load_drafting(config, str(drafter.folder), base.target, tree)
    except DrafterError as error:
        raise BenchmarkError(f"{method}: {error}") from error
    if loaded is not None and drafter.kind == "unguessed":
        loaded.takes_guesses = False
    if drafter.kind == "served":
        return as_served(base, str(drafter.folder), loaded, plans)
    return drafting(base, loaded, plans[0], ranks_with_noise=drafter.kind != "top-k")


def as_served(
    base: Engine, folder: str, drafter: Drafter | None, plans: Sequence[DraftPlan]
) -> Engine:
    """An engine on the base's target that drafts as `falcon serve` does: at each step by what is
    predicted to pay, the request's own text or a plan of the drafter.
    """
    plan, *others = plans
    decoder = SpeculativeDecoder(base.target, drafter, plan, base.decoder.sampler, others)
    planner = make_planner(decoder, own_trees(folder, decoder), num_slots=1, row_limit=None)
    return Engine(base.target, decoder, 1, planner, ngrams=NGrams())


def drafting(
    base: Engine, drafter: Drafter | None, plan: DraftPlan, ranks_with_noise: bool = True
) -> Engine:
    """An engine on the base's target that drafts so."""
    sampler = base.decoder.sampler
    if not ranks_with_noise:
        sampler = PlainRanks(sampler.vocab_size, sampler.device)
    return Engine(base.target, SpeculativeDecoder(base.target, drafter, plan, sampler), 1)


class PlainRanks(Sampler):
    """Picks as the engine does, but ranks candidates without the noise that it samples by."""

    def shortlist(
        self, logits: Tensor, params: SamplingParams, where: Sequence[int], width: int
    ) -> tuple[Tensor, Tensor | None]:
        return logits / (params.temperature or 1.0), None


def load(settings: Settings, drafter: Path | None, context_length: int) -> Engine:
    """An engine with one slot. Raises `BenchmarkError` with what is wrong with the models."""
    return load_checked(engine_config(settings, drafter, context_length))


def engine_config(settings: Settings, drafter: Path | None, context_length: int) -> EngineConfig:
    """One slot with room for `context_length` tokens, always speculating."""
    return EngineConfig(
        model=str(settings.model),
        drafter=None if drafter is None else str(drafter),
        dtype=settings.dtype,
        device=settings.device,
        max_model_len=context_length,
        max_num_seqs=1,
        threads=settings.threads,
        speculation="always",
    )


def load_checked(config: EngineConfig, tree: Tree | None = None) -> Engine:
    """An engine. Raises `BenchmarkError` with what is wrong with the models."""
    try:
        return load_engine(config, tree)
    except (TargetError, DrafterError) as error:
        raise BenchmarkError(str(error)) from error


def plain(engine: Engine) -> Engine:
    """The same target without a drafter."""
    target = engine.target
    plan = build_plan(ROOT_ONLY, 1, target.device)
    decoder = SpeculativeDecoder(target, None, plan, engine.decoder.sampler)
    return Engine(target, decoder, max_num_seqs=1, grammars=engine.grammars)


def looking_up(engine: Engine) -> Engine:
    """The same target without a drafter, but with prompt lookup."""
    without = plain(engine)
    without.policy.ngrams = NGrams()
    return without


def engine_with(
    engine: Engine, tree: Tree, num_slots: int = 1, dynamic: Dynamic | None = None
) -> Engine:
    """Another engine on the same target, KV slots and drafter's weights, with another plan.

    The two must not run at the same time. A tree of the root alone decodes without the drafter.
    """
    target, drafter = engine.target, engine.decoder.drafter
    assert drafter is not None
    plan = build_plan(tree, drafter.block_size, target.device, dynamic)
    own = refit(drafter, plan, target, num_slots) if plan.passes else None
    return Engine(target, SpeculativeDecoder(target, own, plan, engine.decoder.sampler), num_slots)


def load_model(settings: Settings) -> Any:
    """The model as transformers runs it by default, in the dtype that the engine chooses."""
    try:
        device = choose_device(settings.device)
        own = AutoConfig.from_pretrained(settings.model, local_files_only=True).dtype
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.model,
            dtype=choose_dtype(settings.dtype, device, own),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{settings.model} cannot be loaded: {error}") from error
    return model.to(device).eval()
