"""The rows of one target forward: several requests' tokens, flattened to `[1, sum of rows]`.

A segment is one request's rows: a tree to verify or a chunk of prompt. Row r of a segment stands in
KV column `length + r` of its slot, and sees the `length` committed columns plus what its mask says.

    slot 2, length 4, a tree of 3 rows        columns  0 1 2 3 | 4 5 6 | padding to EXTENT_STEP
                                              row 0    x x x x | x . . | .
                                              row 1    x x x x | x x . | .
                                              row 2    x x x x | x . x | .
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

# Attention reads KV in whole steps of so many columns: with a fixed extent a row's bits do not
# depend on how many columns happen to be in use (docs/decisions.md, "Row classes").
EXTENT_STEP = 64

MaskKey = tuple[int | None, int, torch.dtype]


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


@dataclass(frozen=True, slots=True)
class Segment:
    """One request's rows.

    `offsets` [T] int64 is each row's position minus `length`; `visible` [T,T] bool is which of the
    segment's own rows a row sees.
    """

    slot: int
    length: int
    offsets: Tensor
    visible: Tensor
    _masks: dict[MaskKey, Tensor] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return self.visible.shape[0]

    @property
    def extent(self) -> int:
        """KV columns that attention reads."""
        return round_up(self.length + self.num_rows, EXTENT_STEP)

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [groups * T, extent], 0 where visible and -inf elsewhere.

        `window` keeps keys less than so many positions back; `groups` query heads per key head are
        folded into rows.
        """
        key = (window, groups, dtype)
        if key not in self._masks:
            self._masks[key] = self._build_mask(window, groups, dtype)
        return self._masks[key]

    def _build_mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        end = self.length + self.num_rows
        visible = torch.zeros(
            self.num_rows, self.extent, dtype=torch.bool, device=self.visible.device
        )
        visible[:, : self.length] = True
        visible[:, self.length : end] = self.visible
        if window is not None:
            columns = torch.arange(self.extent, device=visible.device)
            columns[self.length : end] = self.length + self.offsets
            visible &= self.length + self.offsets[:, None] - columns < window
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, float("-inf")).repeat(groups, 1)


@dataclass(frozen=True, slots=True)
class Rows:
    """What the attention function needs to know of one forward."""

    segments: tuple[Segment, ...]

    def position_ids(self, limit: int) -> Tensor:
        """[1, rows] int64. Draft rows past the model's last position are cut off after the step."""
        positions = [segment.length + segment.offsets for segment in self.segments]
        return torch.cat(positions).clamp_(max=limit - 1)[None]


def causal_segment(slot: int, length: int, count: int, device: torch.device) -> Segment:
    """A chunk of `count` prompt tokens that follows `length` committed ones."""
    offsets = torch.arange(count, device=device)
    return Segment(slot, length, offsets, offsets[None, :] <= offsets[:, None])
