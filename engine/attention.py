"""The one attention function: writes keys and values into their slots, attends with the tree mask.

Unmodified models reach it through `attend`, which is registered with transformers'
`AttentionInterface`; `layers.py` calls `attend_columns` itself. It is the only place that touches
the KV tensors during a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from .rows import Rows, Run

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
    groups, count, outputs = query.shape[1] // key.shape[1], falcon_rows.count, []
    masks = falcon_rows.mask(sliding_window or None, groups, query.dtype)
    for run in falcon_rows.runs:
        key_value = torch.stack((key[0, :, run.rows], value[0, :, run.rows]))
        outputs.append(
            attend_columns(
                slot_columns(slots, run, count, falcon_rows.extent),
                query[0, :, run.rows],
                torch.split(key_value, count, dim=2),
                masks[run.requests],
                scale,
                softcap or None,
            )
        )
    attended = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return attended.transpose(0, 1)[None], None


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a run of b requests stands in one layer's slots or, with an L in front, in all layers'.

    `own` are each request's rows' columns, [2,Hkv,T,D]; `keys` and `values` [b,Hkv,E,D] all that
    they read.
    """

    own: list[Tensor]
    keys: Tensor
    values: Tensor

    def by_layer(self) -> list[Columns]:
        own = zip(*(columns.unbind() for columns in self.own), strict=True)
        return [Columns(list(o), *kv) for o, *kv in zip(own, self.keys, self.values, strict=True)]


def slot_columns(slots: Tensor, run: Run, count: int, extent: int) -> Columns:
    """The run's columns in slots [2,slots,Hkv,capacity,D] or [L,2,slots,Hkv,capacity,D].

    Each request has `count` rows, and reads `extent` columns.
    """
    starts = zip(range(run.slots.start, run.slots.stop), run.lengths, strict=True)
    own = [slots[..., slot, :, length : length + count, :] for slot, length in starts]
    keys, values = slots[..., run.slots, :, :extent, :].unbind(-5)
    return Columns(own, keys, values)


def attend_columns(
    columns: Columns,
    query: Tensor,
    key_values: Sequence[Tensor],
    mask: Tensor,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Write each request's [2,Hkv,T,D], attend with query [Hq,b*T,D] -> [Hq,b*T,D].

    Query heads of one key head become rows of it, as in mask [b,1,Hq/Hkv*T,E].
    """
    for own, key_value in zip(columns.own, key_values, strict=True):
        own.copy_(key_value)
    keys, values = columns.keys, columns.values
    batch, num_kv, _, size = keys.shape
    heads = query.view(num_kv, -1, batch, query.shape[1] // batch, size)
    folded = heads.permute(2, 0, 1, 3, 4).reshape(batch, num_kv, -1, size)
    if softcap is None:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    else:
        scores = softcap * torch.tanh(folded @ keys.transpose(-1, -2) * (scale / softcap))
        weights = torch.softmax(scores.float() + mask.float(), dim=-1).to(query.dtype)
        out = weights @ values
    unfolded = out.view(batch, num_kv, *heads.shape[1::2], size)
    return unfolded.permute(1, 2, 0, 3, 4).reshape(query.shape)


def register() -> None:
    """Make `attn_implementation=IMPLEMENTATION` known to transformers. Safe to repeat."""
    AttentionInterface.register(IMPLEMENTATION, attend)
