"""From a model folder to transformers' model on our attention, whole or one rank's share of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from drafter.target import preferred_dtype

from .attention import IMPLEMENTATION, register
from .config import EngineConfig
from .folders import danger_in


class TargetError(ValueError):
    """The target model cannot be served."""


def read_config(config: EngineConfig) -> Any:
    """The model's own configuration; raises `TargetError` for a folder that is not served."""
    folder = Path(config.model)
    if not (folder / "config.json").is_file():
        raise TargetError(f"{folder} is not a model folder: it has no config.json")
    if (danger := danger_in(folder)) is not None:
        raise TargetError(danger)
    check_weights(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise TargetError(f"{folder} cannot be loaded: {error}") from error


def load_model(
    config: EngineConfig,
    checkpoint_dtype: torch.dtype | None,
    split: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Load safetensors weights; raises `TargetError` with what is wrong.

    `split` are the arguments by which transformers loads no more than this rank's share.
    """
    folder, device = Path(config.model), choose_device(config.device)
    register()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=choose_dtype(config.dtype, device, checkpoint_dtype),
            attn_implementation=IMPLEMENTATION,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **split,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TargetError(f"{folder} cannot be loaded: {error}") from error
    model, info = loaded
    lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lacking:
        raise TargetError(f"the weights in {folder} lack {lacking[:4]} or have other shapes")
    return (model if split else model.to(device)).eval()


def check_weights(folder: Path) -> None:
    """Refuse a weights file that cannot be read, by its name."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                weights.keys()
        except (OSError, SafetensorError) as error:
            raise TargetError(f"{file} cannot be read: {error}") from error


def choose_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TargetError("device cuda was asked for, but torch sees no CUDA device")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def choose_dtype(
    wanted: str, device: torch.device, checkpoint: torch.dtype | None = None
) -> torch.dtype:
    """ "auto": the checkpoint's dtype on CUDA; on a CPU bfloat16 if it has units for it."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            wanted
        ]
    if device.type == "cuda":
        return checkpoint or torch.bfloat16
    return preferred_dtype(device)


KEY_PROJECTIONS = frozenset({"k_proj", "qkv_proj", "c_attn", "query_key_value"})


def attention_modules(model: Any) -> list[nn.Module]:
    """The modules that call the attention interface, by layer."""
    found = {
        module.layer_idx: module
        for module in model.modules()
        if isinstance(getattr(module, "layer_idx", None), int) and _projects_keys(module)
    }
    expected = model.config.num_hidden_layers
    if sorted(found) != list(range(expected)):
        raise TargetError(
            f"{model.config.model_type} has {len(found)} attention layers of {expected}; models "
            "with recurrent state cannot be speculated on"
        )
    return [found[layer] for layer in range(expected)]


def _projects_keys(module: nn.Module) -> bool:
    """Whether it is an attention module: decoder layers carry a `layer_idx` too."""
    return not KEY_PROJECTIONS.isdisjoint(name for name, _ in module.named_children())


def kv_shape(config: Any) -> tuple[int, int]:
    """Key-value heads and head size."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, head_dim
