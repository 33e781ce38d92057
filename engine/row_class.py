"""How many rows a forward has at least, so that up to 32 rows are all computed alike.

A product of a few rows may add in another order than one of many; then plain decoding, whose step
has one row, is padded to a class of rows. In bfloat16 the padding costs next to nothing. In float32
it costs a third of a step, so there it is tried what this CPU does: any other order shows in the
last bits of float32 logits. Attention is tried by itself, over more columns (`extents.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .rows import ROW_CLASS, ROW_STEP, Rows, causal_rows

MOST_ROWS = 2 * ROW_CLASS
CONTEXT = 48  # tokens in front of the rows that are tried

Forward = Callable[[Tensor, Rows], Tensor]  # ids [R] and their rows -> logits [R,V]


@torch.inference_mode()
def probe_fewest_rows(
    forward: Forward, vocab_size: int, slot: int, context_length: int, like: Tensor
) -> int:
    """`ROW_STEP` if forwards of so many rows and more are alike, else `ROW_CLASS`; uses `slot`."""
    if like.dtype != torch.float32 or like.device.type != "cpu":
        return ROW_CLASS
    context = max(1, min(CONTEXT, context_length // 2))
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (context + MOST_ROWS,), generator=dice)

    def logits(start: int, count: int) -> Tensor:
        rows = causal_rows(slot, start, count, like.device)
        return forward(ids[start : start + count], rows)

    logits(0, context)
    whole = logits(context, MOST_ROWS)
    fewer = range(ROW_STEP, MOST_ROWS, ROW_STEP)
    is_alike = all(torch.equal(logits(context, count), whole[:count]) for count in fewer)
    return ROW_STEP if is_alike else ROW_CLASS
