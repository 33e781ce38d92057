"""The one attention function: writes keys and values into their slots, attends with the tree mask.

Registered with transformers' `AttentionInterface`, so unmodified models call it. It is the only
place that touches the KV tensors during a forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from .rows import Rows, Segment

IMPLEMENTATION = "falcon_slots"
SLOTS_BUFFER = "falcon_key_value"  # [2, slots, kv_heads, capacity, D] on each attention module

# Keyword arguments that change what attention computes and that this function does not implement.
UNSUPPORTED = ("s_aux", "position_bias", "head_mask", "indexer", "block_mask")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    falcon_rows: Rows | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1,Hq,R,D], key and value [1,Hkv,R,D] of all rows -> [1,R,Hq,D].

    Raises `NotImplementedError` for an argument that would silently change the result.
    """
    unknown = [name for name in UNSUPPORTED if others.get(name) is not None]
    if unknown or attention_mask is not None or falcon_rows is None:
        raise NotImplementedError(f"attention with {unknown or 'a mask or without rows'}")
    slots = getattr(module, SLOTS_BUFFER)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs, start = [], 0
    for segment in falcon_rows.segments:
        rows = slice(start, start + segment.num_rows)
        start = rows.stop
        columns = slice(segment.length, segment.length + segment.num_rows)
        slots[0, segment.slot, :, columns] = key[0, :, rows]
        slots[1, segment.slot, :, columns] = value[0, :, rows]
        window = sliding_window or None
        outputs.append(
            _attend_segment(query[:, :, rows], slots, segment, scale, window, softcap or None)
        )
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def _attend_segment(
    query: Tensor,
    slots: Tensor,
    segment: Segment,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """query [1,Hq,T,D] over the segment's slot -> [1,T,Hq,D]; heads of a group become rows."""
    _, num_heads, count, size = query.shape
    keys, values = slots[:, segment.slot : segment.slot + 1, :, : segment.extent]
    groups = num_heads // keys.shape[1]
    folded = query.reshape(1, keys.shape[1], groups * count, size)
    mask = segment.mask(window, groups, query.dtype)
    if softcap is None:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    else:
        scores = softcap * torch.tanh(folded @ keys.transpose(-1, -2) * (scale / softcap))
        weights = torch.softmax(scores.float() + mask.float(), dim=-1).to(query.dtype)
        out = weights @ values
    return out.view(1, num_heads, count, values.shape[-1]).transpose(1, 2)


def register() -> None:
    """Make `attn_implementation=IMPLEMENTATION` known to transformers. Safe to repeat."""
    AttentionInterface.register(IMPLEMENTATION, attend)
