"""KV slots: one row of the cache per running request, in one tensor for all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .attention import SLOTS_BUFFER
from .orders import CopyPrefix, Order, Scrub


class KeyValueSlots:
    """Keys and values of all layers, `[layers, 2, slots, kv_heads, capacity, D]`.

    Each attention module holds its layer's view as a buffer. Columns `0..length-1` of a slot are
    committed; the columns after them are scratch for the rows of the next forward. Where other
    ranks hold the rest of the heads, `tell` lets them do the same to theirs.
    """

    tell: Callable[[Order], None] | None = None

    def __init__(
        self,
        modules: Sequence[nn.Module],
        num_slots: int,
        capacity: int,
        shape: tuple[int, int],
        like: Tensor,
    ) -> None:
        """`shape` is (kv_heads, D); `like` has the dtype and the device."""
        kv_heads, head_dim = shape
        self.tensor = like.new_zeros(len(modules), 2, num_slots, kv_heads, capacity, head_dim)
        for module, layer in zip(modules, self.tensor, strict=True):
            module.register_buffer(SLOTS_BUFFER, layer, persistent=False)

    def copy_prefix(self, source: int, slot: int, length: int) -> None:
        """Let `slot` hold the first `length` columns of `source`."""
        if source != slot:
            self._tell(CopyPrefix(source, slot, length))
            self.tensor[:, :, slot, :, :length] = self.tensor[:, :, source, :, :length]

    def scrub(self, slot: int, start: int) -> None:
        """Zero columns from `start` on: what is not finite would spread even if it is masked."""
        self._tell(Scrub(slot, start))
        self.tensor[:, :, slot, :, start:] = 0

    def _tell(self, order: Order) -> None:
        if self.tell is not None:
            self.tell(order)
