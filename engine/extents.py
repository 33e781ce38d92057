"""How many KV columns attention may read, so that its bits do not depend on the choice.

A row's sum over keys must come out the same whether plain decoding reads 192 columns or a tree, a
little longer, 256, all further ones being masked. Kernels split a sum by its length: for some
lengths the parts are added in another order. Those lengths are found at load, with values whose
sums cancel, so that every change of order shows in the result.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor
from torch.nn import functional as F

from .rows import ROW_CLASS, ROW_STEP

EXTENT_STEP = 64  # extents that are tried
SAFE_STEP = 512  # the CPU kernel's own block of keys: whole blocks are always summed alike
PROBED = 2 * SAFE_STEP  # beyond, an extent is like the one with the same rest of a block
ROWS = (ROW_CLASS, ROW_STEP)  # of the forwards that are compared


class Extents:
    """The lengths that may be read, for one attention shape on one device."""

    def __init__(self, rests: list[int]) -> None:
        """`rests` are the good lengths of a last block, `SAFE_STEP` among them."""
        self.rests = rests

    def at_least(self, columns: int) -> int:
        """The shortest extent that holds so many columns."""
        whole, rest = divmod(columns - 1, SAFE_STEP)
        return whole * SAFE_STEP + self.rests[bisect_left(self.rests, rest + 1)]


@torch.inference_mode()
def probe_extents(kv_heads: int, head_dim: int, groups: int, like: Tensor) -> Extents:
    """Try each length of a last block behind no other and behind one; keep what is always alike."""
    rests = [
        rest
        for rest in range(EXTENT_STEP, SAFE_STEP, EXTENT_STEP)
        if all(
            is_alike(extent, kv_heads, head_dim, groups, like)
            for extent in range(rest, PROBED, SAFE_STEP)
        )
    ]
    return Extents([*rests, SAFE_STEP])


@torch.inference_mode()
def are_rows_alike(kv_heads: int, head_dim: int, groups: int, like: Tensor) -> bool:
    """Whether whole blocks are summed alike for all `ROWS`."""
    shape = kv_heads, head_dim, groups, like
    return all(is_alike(extent, *shape) for extent in range(SAFE_STEP, PROBED + 1, SAFE_STEP))


def is_alike(extent: int, kv_heads: int, head_dim: int, groups: int, like: Tensor) -> bool:
    """Whether reading `extent` columns gives the bits of reading whole blocks, with all `ROWS`."""
    whole = -(-extent // SAFE_STEP) * SAFE_STEP
    most = groups * max(ROWS)
    query = like.new_zeros(1, kv_heads, most, head_dim)  # all keys weigh the same
    keys = like.new_zeros(1, kv_heads, whole, head_dim)
    visible = extent - 3
    values = torch.zeros_like(keys)
    values[:, :, :visible] = cancelling(kv_heads, visible, head_dim).to(like)
    mask = like.new_zeros(1, 1, most, whole)
    mask[..., visible:] = float("-inf")

    def attend(rows: int, columns: int) -> Tensor:
        return F.scaled_dot_product_attention(
            query[:, :, : groups * rows],
            keys[:, :, :columns],
            values[:, :, :columns],
            attn_mask=mask[:, :, : groups * rows, :columns],
        )

    expected = attend(max(ROWS), whole)
    return all(torch.equal(attend(n, extent), expected[:, :, : groups * n]) for n in ROWS)


def cancelling(heads: int, count: int, size: int) -> Tensor:
    """Values [heads,count,size] of many magnitudes whose sums over `count` are rounding noise."""
    dice = torch.Generator().manual_seed(count)
    shape = (heads, count // 2, size)
    half = torch.randn(shape, generator=dice)
    half *= 2.0 ** torch.randint(-8, 9, shape, generator=dice)
    odd = half.new_zeros(heads, count % 2, size)
    return torch.cat((half, -half, odd), 1)[:, torch.randperm(count, generator=dice)]
