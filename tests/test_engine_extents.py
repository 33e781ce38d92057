"""Reading more masked columns changes no bit of attention, for the extents that are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.extents import SAFE_STEP, Extents, cancelling, is_alike, probe_extents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [5, 100, 173, 250, 300, 500, 520, 700, 800, 1000])
def test_kept_extents_are_alike_at_every_length(dtype: torch.dtype, length: int) -> None:
    """Values whose sums cancel show any change of order; rows of plain decoding and of trees."""
    extents = probe_extents(2, 16, 2, torch.zeros(1, dtype=dtype))
    values = torch.zeros(1, 2, 2048, 16)
    values[0, :, :length] = cancelling(2, length, 16)
    values = values.to(dtype)

    def attend(rows: int, extent: int) -> Tensor:
        mask = torch.zeros(2 * rows, extent, dtype=dtype)
        mask[:, length:] = float("-inf")
        query, keys = torch.zeros(1, 2, 2 * rows, 16), torch.zeros(1, 2, extent, 16)
        out = F.scaled_dot_product_attention(
            query.to(dtype), keys.to(dtype), values[:, :, :extent], attn_mask=mask
        )
        return out.view(2, 2, rows, 16)[:, :, :4]

    expected = attend(16, extents.at_least(length))
    for ahead in range(0, 700, 32):
        for rows in (4, 8, 16, 20, 28, 32):
            assert torch.equal(attend(rows, extents.at_least(length + ahead)), expected)


def test_a_length_that_is_summed_in_another_order_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = F.scaled_dot_product_attention

    def attend(query: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor) -> Tensor:
        if keys.shape[2] == 128:  # the second half first
            keys, values = keys.roll(64, 2), values.roll(64, 2)
            attn_mask = attn_mask.roll(64, -1)
        return original(query, keys, values, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    like: dict[str, Any] = {"kv_heads": 2, "head_dim": 16, "groups": 2, "like": torch.zeros(1)}
    assert not is_alike(128, **like)
    assert is_alike(64, **like)
    assert 128 not in probe_extents(**like).rests


def test_an_extent_is_the_shortest_that_is_kept() -> None:
    extents = Extents([64, 192, SAFE_STEP])
    asked = [1, 64, 65, 192, 193, 512, 513, 577, 1024, 1025]
    assert [extents.at_least(columns) for columns in asked] == [
        *(64, 64, 192, 192, 512, 512),
        *(512 + 64, 512 + 192, 1024, 1024 + 64),
    ]
