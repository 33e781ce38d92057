"""Standard Gumbel noise as a pure function of (seed, position, token): nothing to save or restore.

The mix of `seeds.py` hashes the three numbers; the top 53 bits become a uniform number and that the
noise. Low uniforms, which become the large values that decide an argmax, keep their full relative
precision in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .seeds import FIRST, GOLDEN, MASK, SECOND, mix

_TOKEN_STRIDE = 0xD1342543DE82EF95


def gumbel(keys: Tensor, token_hashes: Tensor) -> Tensor:
    """Noise [..., V] float32 for keys [...] int64 of `position_key` and hashes of `hash_tokens`."""
    bits = _finalize(keys[..., None] ^ token_hashes)
    uniform = _shift(bits, 11).to(torch.float32).mul_(2.0**-53)
    exponential = uniform.neg_().log1p_().neg_()
    return exponential.clamp_(min=2.0**-60, max=40.0).log_().neg_()  # finite, whatever the bits


def position_keys(seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
    """One int64 key for each (seed, position) pair: [M]."""
    return torch.tensor(
        [_key(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    )


def hash_tokens(vocab_size: int, device: torch.device) -> Tensor:
    """[V] int64; computed once per engine."""
    return torch.arange(1, vocab_size + 1, device=device) * _signed(_TOKEN_STRIDE)


def _key(seed: int, position: int) -> int:
    return _signed(mix(mix(seed & MASK) + position * GOLDEN & MASK))


def _finalize(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)).mul_(_signed(FIRST))
    x = (x ^ _shift(x, 27)).mul_(_signed(SECOND))
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
