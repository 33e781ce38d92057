"""The frozen target as the drafter's training sees it: features, embeddings and the LM head.

Only safetensors weights are read and no code from the model's folder is ever run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from .checkpoint import target_fingerprint
from .config import DrafterError
from .model import TargetParts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrozenTarget:
    """A loaded target: `model` is frozen and evaluating, `decoder` is it without LM head."""

    model: Any
    decoder: Any
    tokenizer: Any
    parts: TargetParts
    fingerprint: str
    device: torch.device
    dtype: torch.dtype

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: those of the generation config and of the tokenizer."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}))

    @torch.no_grad()
    def features(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states after the final norm: ids [B,S] -> [B,S,H].

        Rows padded on the right need no mask: attention is causal.
        """
        output = self.decoder(input_ids=ids, attention_mask=attention_mask, use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden


def load_frozen_target(
    folder: str | Path, device: torch.device, compile_layers: bool = False
) -> FrozenTarget:
    """Load a Hugging Face decoder-only model from a local folder; raises `DrafterError`."""
    fingerprint = target_fingerprint(folder)
    dtype = preferred_dtype(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise DrafterError(f"the target in {folder} cannot be loaded: {error}") from error
    model = model.to(device).eval().requires_grad_(False)
    decoder = model.get_decoder() or model.base_model
    if compile_layers:
        for layer in decoder.layers:
            layer.compile(dynamic=True)
    log.info("target %s: %s, %s on %s", folder, type(model).__name__, dtype, device)
    return FrozenTarget(model, decoder, tokenizer, target_parts(model), fingerprint, device, dtype)


def target_parts(model: Any, lend: Callable[[nn.Module], nn.Module] | None = None) -> TargetParts:
    """The target's embedding and LM head, as its own forward applies them.

    `head` maps features after the final norm [..., H] to logits [..., V], with the scaling and the
    soft cap that the model's config asks for. Its linear layer is the model's, or what `lend` makes
    of that.
    """
    linear = model.get_output_embeddings()
    if linear is None:
        raise DrafterError(f"{type(model).__name__} has no output embeddings")
    width = model.get_input_embeddings().weight.shape[1]
    if width != linear.weight.shape[1]:
        raise DrafterError(
            f"{type(model).__name__}: embeddings of {width} and features of "
            f"{linear.weight.shape[1]} dimensions; a drafter needs both alike"
        )
    text_config = model.config.get_text_config()
    multiplier = float(getattr(text_config, "logit_scale", None) or 1.0)  # Cohere
    divisor = float(getattr(text_config, "logits_scaling", None) or 1.0)  # Granite
    cap = getattr(text_config, "final_logit_softcapping", None)  # Gemma 2
    scale, dtype = multiplier / divisor, linear.weight.dtype
    product = lend(linear) if lend else linear

    def head(features: Tensor) -> Tensor:
        logits: Tensor = product(features.to(dtype))
        if scale != 1.0:
            logits = logits * scale
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return TargetParts(embed=model.get_input_embeddings(), head=head)


def preferred_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.cpu.get_capabilities()
    has_bf16 = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if has_bf16 else torch.float32
