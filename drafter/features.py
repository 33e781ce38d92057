"""The target's features of all training rows, kept in a file, so that the target reads them once.

    FILE         the rows' positions one after the other: [T,H] in the target's dtype
    FILE.json    the rows and the target that they are of

Any run on the same rows may use it, whatever its method.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .config import DrafterError
from .data import Example, collate, digest, plan_batches
from .sidecar import check_sidecar, write_sidecar
from .target import FrozenTarget

log = logging.getLogger(__name__)


class StoredFeatures:
    """Those of `examples`; computed here where `file` does not hold them yet.

    Raises `DrafterError` where it holds those of other rows or of another target.
    """

    def __init__(
        self,
        file: Path,
        target: FrozenTarget,
        examples: Sequence[Example],
        batch_tokens: int,
        on_batch: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._starts = [0, *accumulate(map(len, examples))]
        self._device = target.device
        shape = self._starts[-1], target.hidden_size
        size = shape[0] * shape[1] * target.dtype.itemsize
        made_with = {"data": digest(examples), "target": target.fingerprint}
        made_with |= {"dtype": str(target.dtype)}
        sidecar = file.with_name(f"{file.name}.json")
        if file.exists():
            check_sidecar(sidecar, file, made_with)
            if file.stat().st_size != size:
                raise DrafterError(f"{file} is cut off: it should have {size} bytes")
        else:
            log.info("features of %d positions: %.1f GB in %s", shape[0], size / 1e9, file)
            fresh = file.with_name(f"{file.name}.{os.getpid()}.new")  # runs may start together
            try:
                _reserve(fresh, size)
                out = _open(fresh, shape, target.dtype)
                self._compute(out, target, examples, batch_tokens, on_batch)
                write_sidecar(sidecar, made_with)
                os.replace(fresh, file)
            finally:
                fresh.unlink(missing_ok=True)
        self._all = _open(file, shape, target.dtype)

    def _compute(
        self,
        out: Tensor,
        target: FrozenTarget,
        examples: Sequence[Example],
        batch_tokens: int,
        on_batch: Callable[[float], None],
    ) -> None:
        batches = plan_batches(list(map(len, examples)), batch_tokens, seed=0, epoch=0)
        for number, indices in enumerate(batches):
            on_batch(number / len(batches))
            features = target.features(collate([examples[i] for i in indices], target.device).ids)
            for row, index in zip(features, indices, strict=True):
                start, stop = self._starts[index], self._starts[index + 1]
                out[start:stop] = row[: stop - start].cpu()
        on_batch(1.0)

    def of(self, indices: Sequence[int]) -> Tensor:
        """The features [B,S,H] of some examples, 0 in padding."""
        rows = [self._all[self._starts[i] : self._starts[i + 1]] for i in indices]
        return pad_sequence(rows, batch_first=True).to(self._device)


def _reserve(file: Path, size: int) -> None:
    """Make a file of so many bytes that has its room on the disk, where the system can say so."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        raise DrafterError(f"no {size / 1e9:.1f} GB for features in {file}: {error}") from error


def _open(file: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A tensor whose memory is the file."""
    count = shape[0] * shape[1]
    return torch.from_file(str(file), shared=True, size=count, dtype=dtype).view(shape)
