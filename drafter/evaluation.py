"""How well a drafter foretells its target on held-out answers, slot by slot of a block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .csgd import Lesson, LossWeights, distillation_losses, make_lesson
from .data import Batch
from .model import FalconHead
from .target import FrozenTarget

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
def evaluate(
    head: FalconHead, target: FrozenTarget, batches: Iterable[Batch], weights: LossWeights
) -> Evaluation:
    """Measure `head`; it is left in the mode it came in."""
    was_training, k = head.training, head.config.block_size
    head.eval()
    ranks: list[Tensor] = []
    losses = torch.zeros(3, dtype=torch.float64)
    num_counted = 0
    for batch in batches:
        features = target.features(batch.ids)
        lesson = make_lesson(batch.ids, features, batch.is_answer, k, target.parts)
        count = int(lesson.counted.sum())
        for offset in range(k):
            predicted = head(target.parts.embed(lesson.tokens), lesson.features, offset)
            mean = distillation_losses(predicted, lesson, lesson.counted, target.parts, weights)
            values = torch.stack((mean.total, mean.feature, mean.token))
            losses += count * values.double().cpu()
            num_counted += count
            ranks.append(block_ranks(predicted, lesson, target, k, offset))
    head.train(was_training)
    return summarize(torch.cat(ranks), losses / max(num_counted, 1))


def block_ranks(
    predicted: Tensor, lesson: Lesson, target: FrozenTarget, block_size: int, offset: int
) -> Tensor:
    """Rank of the target's pick among the drafter's tokens for whole answer blocks: [blocks,K].

    K=2, offset 1     position   0 | 1 2 | 3 4 | 5      blocks: (1, 2) and (3, 4)
    """
    first = -offset % block_size
    num_blocks = max(0, (predicted.shape[1] - first) // block_size)
    inside = slice(first, first + num_blocks * block_size)
    shape = (predicted.shape[0], num_blocks, block_size)
    is_whole = lesson.counted[:, inside].reshape(shape).all(-1)  # [B, blocks]
    rows = predicted[:, inside].reshape(*shape, predicted.shape[-1])[is_whole]  # [M, K, H]
    picks = lesson.picks[:, inside].reshape(shape)[is_whole]  # [M, K]
    ranks = []
    for chunk, pick in zip(torch.split(rows, 1024), torch.split(picks, 1024), strict=True):
        best = target.parts.head(chunk).topk(min(RANKS[-1], target.vocab_size)).indices
        is_hit = best == pick[..., None]  # [m, K, 8]
        ranks.append(torch.where(is_hit.any(-1), is_hit.int().argmax(-1), RANKS[-1]))
    return torch.cat(ranks) if ranks else picks


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
