"""64-bit mixing of seeds: what noise and the choices of one request are derived from; no torch.

The mix is the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
"""

from __future__ import annotations

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB


def mix(value: int) -> int:
    """An unsigned 64-bit number in which every bit depends on every bit of `value`."""
    value = (value + GOLDEN) & MASK
    value = ((value ^ (value >> 30)) * FIRST) & MASK
    value = ((value ^ (value >> 27)) * SECOND) & MASK
    return value ^ (value >> 31)


def choice_seed(seed: int, index: int) -> int:
    """The seed of a request's choice number `index`; the first one keeps the request's own."""
    return seed if index == 0 else mix(seed ^ mix(index))
