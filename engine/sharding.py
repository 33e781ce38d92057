"""How a model is split over ranks: transformers' own plan, less what one rank needs whole.

Each rank has a share of every layer's heads and of its MLP; two sums over the ranks a layer make
the residual stream whole everywhere. Embedding and output head are not split: the drafter and the
scores of prompts use them on rank 0, which alone computes logits. Followers drop the head.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils import logging as transformers_log

from .config import EngineConfig
from .ordered_sums import OWN_SUMS, UNORDERED, with_ordered_sums
from .pretrained import (
    KEY_PROJECTIONS,
    TargetError,
    choose_device,
    choose_dtype,
    kv_shape,
    load_model,
)
from .ranks import group_variables

# The one style of both transformers that we support which leaves a module as it is in inference.
WHOLE = "replicated_with_grad_allreduce"


def check_split(config: EngineConfig, model_config: Any) -> None:
    """Raises `TargetError` where the model cannot be split as `config` asks."""
    size, device = config.tensor_parallel_size, choose_device(config.device)
    asked = f"tensor_parallel_size {size}"
    if device.type == "cuda" and torch.cuda.device_count() < size:
        raise TargetError(f"{asked}: each rank needs a GPU; torch sees {torch.cuda.device_count()}")
    if device.type == "cpu" and torch.accelerator.is_available():
        raise TargetError(
            f"{asked} with device cpu beside an accelerator, which transformers would split the "
            "model over: hide it (CUDA_VISIBLE_DEVICES=)"
        )
    plan, (heads, _) = split_plan(model_config), kv_shape(model_config)
    if splits_heads(plan) and heads % size:
        fitting = [number for number in range(1, heads + 1) if heads % number == 0]
        raise TargetError(
            f"{asked} does not divide the {heads} key-value heads of {model_config.model_type}: "
            f"use one of {', '.join(map(str, fitting))}"
        )
    is_exact = choose_dtype(config.dtype, device, model_config.dtype) == torch.float32
    if size > UNORDERED and not is_exact and OWN_SUMS.intersection(plan.values()):
        raise TargetError(f"{asked} for experts: use {UNORDERED} at most, or dtype float32")


def split_plan(model_config: Any) -> dict[str, str]:
    """How each module is split, by its name; raises `TargetError` where transformers cannot."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(copy.deepcopy(model_config))
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    whole = {name for name, module in model.named_modules() if module in ends}
    plan = {name: style for name, style in model.tp_plan.items() if name not in whole}
    if not plan:
        raise TargetError(f"transformers has no tensor-parallel plan for {model_config.model_type}")
    return plan | dict.fromkeys(whole, WHOLE)


def load_share(config: EngineConfig, model_config: Any, rank: int) -> Any:
    """The model with this rank's share of its weights, once the ranks are a group."""
    plan, size = split_plan(model_config), config.tensor_parallel_size
    if size > UNORDERED:
        plan = with_ordered_sums(plan)
    split = DistributedConfig(tp_size=size, tp_plan=plan)
    with group_variables(rank), _told_errors_only():
        return load_model(config, model_config.dtype, {"distributed_config": split})


def share_shape(model: Any, size: int) -> tuple[int, int]:
    """Key-value heads that a rank's attention sees, and head size."""
    heads, head_dim = kv_shape(model.config)
    return heads // size if splits_heads(model.tp_plan) else heads, head_dim


def splits_heads(plan: Mapping[str, str]) -> bool:
    """Whether attention is split: some plans split its weights and gather their products."""
    return any(
        name.rpartition(".")[2] in KEY_PROJECTIONS and style == "colwise"
        for name, style in plan.items()
    )


@contextmanager
def _told_errors_only() -> Iterator[None]:
    """transformers warns of every module that a plan leaves whole."""
    before = transformers_log.get_verbosity()
    transformers_log.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_log.set_verbosity(before)
