"""How well a drafter foretells its target on held-out answers, slot by slot of a block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Batch
from .target import FrozenTarget
from .teaching import Teaching

RANKS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Over all blocks that lie wholly inside answers, at every alignment.

    `acceptance[s]` is the share of blocks whose slot s is the target's pick, of those where all
    earlier slots are; `hits[s][r]` the share where the pick is among the `RANKS[r]` best of slot s;
    `tau_block` is 1 (the bonus token) plus the mean number of slots accepted in one pass.
    """

    loss: float
    feature_loss: float
    token_loss: float
    acceptance: tuple[float, ...]
    hits: tuple[tuple[float, ...], ...]
    tau_block: float
    num_blocks: int


@torch.no_grad()
def evaluate(teaching: Teaching, target: FrozenTarget, batches: Iterable[Batch]) -> Evaluation:
    """Measure a drafter; it is left in the mode it came in."""
    was_training = teaching.head.training
    teaching.head.eval()
    found = [teaching.measure(batch, target.features(batch.ids)) for batch in batches]
    teaching.head.train(was_training)
    count = sum(one.count for one in found)
    losses = torch.stack([one.losses for one in found]).sum(0)
    return summarize(torch.cat([one.ranks for one in found]), losses / max(count, 1))


def summarize(ranks: Tensor, losses: Tensor) -> Evaluation:
    """ranks [M,K] of the target's picks and mean losses [3] to figures; no block counts as zero."""
    num_blocks, block_size = ranks.shape
    is_accepted = (ranks == 0).int().cumprod(1).double()  # [M, K]
    reached = torch.cat((is_accepted.new_ones(num_blocks, 1), is_accepted[:, :-1]), 1).sum(0)
    acceptance = is_accepted.sum(0) / reached.clamp(min=1)
    hits = [
        tuple(float((ranks[:, slot] < rank).double().sum()) / max(num_blocks, 1) for rank in RANKS)
        for slot in range(block_size)
    ]
    loss, feature_loss, token_loss = losses.tolist()
    return Evaluation(
        loss=loss,
        feature_loss=feature_loss,
        token_loss=token_loss,
        acceptance=tuple(acceptance.tolist()),
        hits=tuple(hits),
        tau_block=1.0 + float(is_accepted.sum()) / max(num_blocks, 1),
        num_blocks=num_blocks,
    )
