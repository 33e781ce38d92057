"""The rows of one target forward: T rows for each of B requests, flattened to `[1, B*T]`.

Row t of a request is a node of its tree, or a token of its prompt. It stands in KV column
`length + t` of the request's slot, and sees the `length` committed columns plus what its mask says.

    slot 2, length 4, a tree of 3 rows        columns  0 1 2 3 | 4 5 6 | padding to the extent
                                              row 0    x x x x | x . . | .
                                              row 1    x x x x | x x . | .
                                              row 2    x x x x | x . x | .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from tree.tables import tree_mask
from tree.topology import Tree

# Forwards of ROW_CLASS rows and more, each request's padded to ROW_STEP, fall into one class of
# matrix and attention kernels, plain decoding's and verification's; some CPUs' of fewer rows, too.
ROW_CLASS = 16
ROW_STEP = 4

MaskKey = tuple[int | None, int, torch.dtype]


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def rows_each(needed: int, batch: int, fewest: int) -> int:
    """Padded rows of each of `batch` requests in one forward of at least `fewest`, of which
    `needed` are wanted.
    """
    return max(round_up(needed, ROW_STEP), round_up(-(-fewest // batch), ROW_STEP))


def prompt_rows(count: int) -> int:
    """Padded rows of a chunk of a prompt: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... classes of rows.

    A CPU makes kernels for each number of rows that it meets, in milliseconds and megabytes.
    """
    classes = -(-count // ROW_CLASS)
    step = 1 << max(0, (classes - 1).bit_length() - 2)
    return ROW_CLASS * round_up(classes, step)


@dataclass(frozen=True, slots=True)
class Run:
    """Requests of a forward whose slots are neighbours, and where they stand."""

    requests: slice
    rows: slice
    slots: slice
    lengths: tuple[int, ...]


class Rows:
    """What the attention function needs to know of one forward.

    `slots` and `lengths` [B] are each request's, slots ascending; `offsets` [B,T] int64 is each
    row's position minus the length; `visible` [B,T,T] bool is which rows of its request a row sees.
    """

    def __init__(
        self, slots: Sequence[int], lengths: Sequence[int], offsets: Tensor, visible: Tensor
    ) -> None:
        self.slots = tuple(slots)
        self.lengths = tuple(lengths)
        self.offsets = offsets
        self.visible = visible
        self.batch, self.count = offsets.shape
        self.extent = max(lengths) + self.count  # columns that attention reads; the target widens
        self._masks: dict[MaskKey, Tensor] = {}

    @cached_property
    def start(self) -> Tensor:
        """[B,1] int64: each request's first column, which is also its first row's position."""
        return torch.tensor(self.lengths, device=self.offsets.device)[:, None]

    @cached_property
    def columns(self) -> Tensor:
        """[B,T] int64: the column that each row stands in."""
        return self.start + torch.arange(self.count, device=self.offsets.device)

    @cached_property
    def runs(self) -> list[Run]:
        """The requests in neighbouring slots together: one attention call each."""
        cuts = [b for b in range(1, self.batch) if self.slots[b] != self.slots[b - 1] + 1]
        edges = [0, *cuts, self.batch]
        return [
            Run(
                requests=slice(low, high),
                rows=slice(low * self.count, high * self.count),
                slots=slice(self.slots[low], self.slots[high - 1] + 1),
                lengths=self.lengths[low:high],
            )
            for low, high in pairwise(edges)
        ]

    def position_ids(self, limit: int) -> Tensor:
        """[1, B*T] int64. Draft rows past the model's last position are cut off after the step."""
        return (self.start + self.offsets).clamp_(max=limit - 1).flatten()[None]

    def mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [B,1,groups*T,extent], 0 where visible and -inf elsewhere.

        `window` keeps keys less than so many positions back; `groups` query heads per key head are
        folded into rows.
        """
        key = (window, groups, dtype)
        if key not in self._masks:
            self._masks[key] = self._build_mask(window, groups, dtype)
        return self._masks[key]

    def _build_mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        shape = (self.batch, self.count, self.extent)
        hidden = torch.ones(shape, dtype=torch.bool, device=self.visible.device)
        for b, length in enumerate(self.lengths):
            hidden[b, :, :length] = False
            hidden[b, :, length : length + self.count] = ~self.visible[b]
        if window is not None:
            held = torch.arange(self.extent, device=hidden.device).repeat(self.batch, 1)
            held.scatter_(1, self.columns, self.start + self.offsets)  # [B, extent] positions
            own = (self.start + self.offsets)[:, :, None]
            hidden |= own - held[:, None] >= window
        mask = torch.zeros(shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, float("-inf")).repeat(1, groups, 1)[:, None]


@dataclass(frozen=True, slots=True)
class TreeRows:
    """A tree as padded target rows: `offsets` [T], `visible` [T,T]; a padding row is a root."""

    tree: Tree
    offsets: Tensor
    visible: Tensor
    children: list[tuple[int, ...]]

    @classmethod
    def of(cls, tree: Tree, count: int, device: torch.device) -> TreeRows:
        """`count` rows."""
        own = torch.tensor(tree_mask(tree), device=device)
        return cls._padded(tree, torch.tensor(tree.depths, device=device), own, count)

    def part(self, nodes: Sequence[int], count: int) -> TreeRows:
        """`count` rows of some nodes, ascending, among them the root and every parent."""
        index = torch.tensor(nodes, device=self.offsets.device)
        visible = self.visible[index[:, None], index]
        return self._padded(self.tree.part(nodes), self.offsets[index], visible, count)

    @classmethod
    def _padded(cls, tree: Tree, offsets: Tensor, visible: Tensor, count: int) -> TreeRows:
        missing = count - tree.num_nodes
        visible = F.pad(visible, (0, missing, 0, missing))
        visible[:, 0] = True
        return cls(tree, F.pad(offsets, (0, missing)), visible, tree.all_children())


def causal_rows(slot: int, length: int, count: int, device: torch.device) -> Rows:
    """A chunk of `count` prompt tokens that follows `length` committed ones."""
    offsets = torch.arange(count, device=device)
    visible = offsets[None, :] <= offsets[:, None]
    return Rows([slot], [length], offsets[None], visible[None])
