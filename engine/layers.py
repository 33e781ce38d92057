"""The decoder of Llama, Mistral, Qwen2 and Qwen3 in as few operations as plain torch allows.

With the few rows of a step most of a forward of transformers' own layers is dispatch of small
operations. This decoder computes the same from the same packed weights in a quarter of them
(docs/decisions.md, "Lean layers"). Every other model runs through transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from .attention import Columns, attend_columns, slot_columns
from .packing import PackedLinear, joint_product
from .rows import Rows

# Exact classes: a subclass may compute something else.
MODELS = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


@dataclass(frozen=True, slots=True)
class Shape:
    """The model's sizes that a forward's buffers and tables depend on."""

    query_heads: int
    kv_heads: int
    head_dim: int
    eps: float
    windows: frozenset[int | None]


@dataclass(frozen=True, slots=True)
class Part:
    """One run's share of a forward: views of the stream's buffers, columns and masks.

    `query` [Hq,b*T,D], `key_values` [2,Hkv,T,D] of each request, `attended` [Hq,b*T,D]; `columns`
    by layer, `masks` by window.
    """

    query: Tensor
    key_values: tuple[Tensor, ...]
    attended: Tensor
    columns: list[Columns]
    masks: dict[int | None, Tensor]


class Stream:
    """One forward's residual stream and what its layers share, made once for all of them.

    The residual has one more column, sqrt(eps * H), so that the length of a whole row is the
    divisor of its RMSNorm:

        x / sqrt(mean(x^2) + eps) = sqrt(H) * x / |x, sqrt(eps * H)|
    """

    def __init__(self, x: Tensor, cos: Tensor, sin: Tensor, shape: Shape) -> None:
        """x [R,H] are the embedded tokens, cos and sin [R,D] the rows' rope."""
        count, width = x.shape
        num_heads = shape.query_heads + 2 * shape.kv_heads
        self.padded = x.new_full((count, width + 1), (shape.eps * width) ** 0.5)
        self.residual = self.padded[:, :width].copy_(x)
        self.ones = x.new_ones(count, 1)
        self.cos, self.sin = rope_tables(cos, sin, num_heads - shape.kv_heads, shape.kv_heads)
        self.heads = x.new_empty(num_heads, count, shape.head_dim)  # queries, keys, values
        self.rotated = self.heads.transpose(0, 1)
        self.attended = x.new_empty(count, shape.query_heads * shape.head_dim)

    def norm(self, weight: Tensor) -> Tensor:
        """RMSNorm of the residual [R,H]; `weight` [H] carries the sqrt(H).

        Weight normalisation is the one kernel of torch that divides rows by their length.
        """
        directions, _ = torch._weight_norm_interface(self.padded, self.ones, 0)
        return directions.narrow(1, 0, len(weight)) * weight

    def rotate(self, heads: Tensor) -> None:
        """Turn heads [R,N,D] by their rows' positions into `self.heads`."""
        swapped = heads.roll(heads.shape[-1] // 2, -1)
        torch.mul(heads, self.cos, out=self.rotated).addcmul_(swapped, self.sin)


def split(stream: Stream, rows: Rows, slots: Tensor, shape: Shape) -> list[Part]:
    """The parts of `stream`'s buffers that belong to each run."""
    groups = shape.query_heads // shape.kv_heads
    attended = stream.attended.view(-1, shape.query_heads, shape.head_dim).transpose(0, 1)
    key_value = stream.heads[shape.query_heads :].view(2, shape.kv_heads, -1, shape.head_dim)
    masks = {window: rows.mask(window, groups, attended.dtype) for window in shape.windows}
    return [
        Part(
            query=stream.heads[: shape.query_heads, run.rows],
            key_values=torch.split(key_value[:, :, run.rows], rows.count, dim=2),
            attended=attended[:, run.rows],
            columns=slot_columns(slots, run, rows.count, rows.extent).by_layer(),
            masks={window: mask[run.requests] for window, mask in masks.items()},
        )
        for run in rows.runs
    ]


def rope_tables(cos: Tensor, sin: Tensor, turned: int, still: int) -> tuple[Tensor, Tensor]:
    """Rope's cos and sin [R,D] for each head, [R,N,D]: values, the last `still`, get 1 and 0.

    `x * cos + roll(x, D/2) * sin` is then transformers' `x * cos + rotate_half(x) * sin`, since the
    sign of the half that it negates is in the table:

        D = 4   rotate_half(x) = -x2 -x3  x0  x1       sin -> -s0 -s1  s2  s3
    """
    first, second = sin.chunk(2, dim=-1)
    signed = torch.cat((-first, second), dim=-1)
    zeros = cos.new_zeros(len(cos), still, cos.shape[-1])
    return (
        torch.cat((cos[:, None].expand(-1, turned, -1), zeros + 1), dim=1),
        torch.cat((signed[:, None].expand(-1, turned, -1), zeros), dim=1),
    )


class Layer:
    """One decoder layer over the weights of transformers' own."""

    def __init__(self, layer: Any, window: int | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index: int = attention.layer_idx
        self.scale, self.window, self.head_dim = attention.scaling, window, attention.head_dim
        self.input_norm = norm_weight(layer.input_layernorm)
        self.output_norm = norm_weight(layer.post_attention_layernorm)
        self.qkv = joint_product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = joint_product(attention.o_proj)
        self.gate_up = joint_product(mlp.gate_proj, mlp.up_proj)
        self.down = joint_product(mlp.down_proj)
        self.norm_heads = head_norm(attention) if hasattr(attention, "q_norm") else None

    def __call__(self, stream: Stream, parts: Sequence[Part]) -> None:
        """Add attention and MLP to the residual stream."""
        product = self.qkv(stream.norm(self.input_norm))
        heads = product.view(len(product), -1, self.head_dim)  # [R,N,D]
        if self.norm_heads is not None:
            self.norm_heads(heads)
        stream.rotate(heads)
        for part in parts:
            columns, mask = part.columns[self.index], part.masks[self.window]
            part.attended.copy_(
                attend_columns(columns, part.query, part.key_values, mask, self.scale)
            )
        stream.residual.add_(self.out(stream.attended))
        gate, up = self.gate_up(stream.norm(self.output_norm)).chunk(2, dim=-1)  # [R,I] each
        stream.residual.add_(self.down(F.silu(gate).mul_(up)))


def norm_weight(norm: Any) -> Tensor:
    """An RMSNorm's weight for `Stream.norm`: [H], times sqrt(H)."""
    weight: Tensor = norm.weight.detach()
    return weight.mul(len(weight) ** 0.5)


def head_norm(attention: Any) -> Callable[[Tensor], None]:
    """Qwen3's RMSNorm of every query and key head, in place on heads [R,N,D]."""
    norms = ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm))
    weight = torch.cat(
        [
            norm.weight.detach().float().expand(projection.weight.shape[0] // len(norm.weight), -1)
            for projection, norm in norms
        ]
    )
    eps: float = attention.q_norm.variance_epsilon

    def norm_heads(heads: Tensor) -> None:
        turned = heads[:, : len(weight)]
        wide = turned.float()
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        turned.copy_(wide * scale * weight)

    return norm_heads


class LeanDecoder:
    """Embedding, layers, final norm and head of a recognised model."""

    def __init__(self, model: Any, slots: Tensor) -> None:
        """`slots` [L,2,slots,Hkv,capacity,D] are the target's."""
        config, decoder = model.config, model.model
        windows = [attention_window(model, layer.self_attn) for layer in decoder.layers]
        self.slots = slots
        self.embedding: Tensor = decoder.embed_tokens.weight.detach()
        self.rotary = decoder.rotary_emb
        self.layers = [Layer(*pair) for pair in zip(decoder.layers, windows, strict=True)]
        self.final_norm = norm_weight(decoder.norm)
        self.head = joint_product(model.lm_head)
        self.shape = Shape(
            config.num_attention_heads,
            config.num_key_value_heads,
            decoder.layers[0].self_attn.head_dim,
            config.rms_norm_eps,
            frozenset(windows),
        )

    def __call__(self, ids: Tensor, positions: Tensor, rows: Rows, keep: int) -> tuple[Tensor, ...]:
        """ids [R], positions [1,R] -> logits of the last `keep` rows, 0 for all; features [R,H]."""
        x = F.embedding(ids, self.embedding)
        cos, sin = self.rotary(x, positions)  # [1,R,D]
        stream = Stream(x, cos[0], sin[0], self.shape)
        parts = split(stream, rows, self.slots, self.shape)
        for layer in self.layers:
            layer(stream, parts)
        features = stream.norm(self.final_norm)
        return self.head(features[-keep:]), features


def attention_window(model: Any, attention: Any) -> int | None:
    """Mistral's layers read it from the config, Qwen's carry it, Llama's have none."""
    if type(model) is MistralForCausalLM:
        return model.config.sliding_window or None
    return getattr(attention, "sliding_window", None)


def is_recognised(model: Any) -> bool:
    """Whether `LeanDecoder` computes what this model does: its class fixes all but two traits."""
    if type(model) not in MODELS or model.config.hidden_act not in ("silu", "swish"):
        return False
    decoder = model.model
    return bool(2 * len(decoder.rotary_emb.inv_freq) == decoder.layers[0].self_attn.head_dim)


def lean_decoder(model: Any, slots: Tensor) -> LeanDecoder | None:
    """The model's lean form if it is recognised and all its linear layers are packed."""
    if not is_recognised(model):
        return None
    packed = sum(isinstance(module, PackedLinear) for module in model.modules())
    linears = 7 * len(model.model.layers) + 1  # q, k, v, o, gate, up, down; the head
    return LeanDecoder(model, slots) if packed == linears else None
