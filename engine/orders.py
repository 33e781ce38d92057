"""What rank 0 tells the other ranks of a model that is split; imports no torch.

One frame each, in order, on a socket of their own (`ranks.py`, `follower.py`). The first is `Join`,
then `Allocate`; from there on each is one thing that `Target` does to its slots.
"""

from __future__ import annotations

import msgspec

from .config import EngineConfig


class Join(msgspec.Struct, frozen=True, tag=True):
    """Become one rank of a group that meets at a port of this machine, and load its share.

    `ends_with_starter` says that the thread that started the process lives as long as rank 0.
    """

    config: EngineConfig
    rank: int
    port: int
    ends_with_starter: bool


class Allocate(msgspec.Struct, frozen=True, tag=True):
    """Make slots, all of them empty; positions end at `context_length`."""

    num_slots: int
    capacity: int
    context_length: int


class Forward(msgspec.Struct, frozen=True, tag=True):
    """Run `count` rows for each slot: the group broadcasts their table behind this.

    Attention reads `extent` columns.
    """

    slots: tuple[int, ...]
    lengths: tuple[int, ...]
    count: int
    extent: int


class CopyPrefix(msgspec.Struct, frozen=True, tag=True):
    """`KeyValueSlots.copy_prefix`."""

    source: int
    slot: int
    length: int


class Scrub(msgspec.Struct, frozen=True, tag=True):
    """`KeyValueSlots.scrub`."""

    slot: int
    start: int


Order = Join | Allocate | Forward | CopyPrefix | Scrub
