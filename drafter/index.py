"""Indices that are slices where they can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Entries of one dimension; a slice where they are neighbours, because views cost next to nothing.
Index = slice | Tensor


def index_of(entries: Sequence[int], device: torch.device) -> Index:
    """An index of the entries, in their order."""
    start = entries[0] if entries else 0
    run = range(start, start + len(entries))
    if list(entries) == list(run):
        return slice(run.start, run.stop)
    return torch.tensor(entries, device=device)
