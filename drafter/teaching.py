"""How each kind of drafter is taught: its losses on a batch, and how well it foretells one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .csgd import (
    Lesson,
    at_all_alignments,
    csgd_losses,
    lesson_losses,
    make_lesson,
    told_words,
)
from .data import Batch
from .distillation import Losses, LossWeights, token_loss
from .heads import AnyHead
from .medusa import MedusaHead
from .model import FalconHead, TargetParts

MEDUSA_DECAY = 0.8  # a head's loss counts so much of that of the head before (the paper's lambda)
MOST_RANKED = 8
ROWS_TOGETHER = 4096  # whose logits are ranked at once


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one batch: summed total, feature and token losses [3] of `count` positions, and the ranks
    [M,K] of the target's picks among the drafter's tokens, slot by slot, of M whole blocks;
    `MOST_RANKED` for those that are not among its best.
    """

    losses: Tensor
    count: int
    ranks: Tensor


class Teaching(Protocol):
    """One drafter in training. Features are the target's [B,S,H]."""

    @property
    def head(self) -> nn.Module: ...

    def losses(
        self, batch: Batch, features: Tensor, glance: float, generator: torch.Generator
    ) -> Losses:
        """Of one step; `glance` is CSGD's lambda, where it is used."""
        ...

    def measure(self, batch: Batch, features: Tensor) -> Measured: ...


class FalconTeaching:
    """Coupled sequential glancing distillation (`csgd.py`)."""

    def __init__(
        self, head: FalconHead, parts: TargetParts, weights: LossWeights, noise: float
    ) -> None:
        self.head, self.parts, self.weights, self.noise = head, parts, weights, noise

    def losses(
        self, batch: Batch, features: Tensor, glance: float, generator: torch.Generator
    ) -> Losses:
        with torch.no_grad():
            lesson = self._lesson(batch, features)
        return csgd_losses(
            self.head, self.parts, lesson, glance, self.weights, generator, self.noise
        )

    def measure(self, batch: Batch, features: Tensor) -> Measured:
        """At every alignment of the blocks."""
        lesson = self._lesson(batch, features)
        k, count = self.head.config.block_size, int(lesson.counted.sum())
        told = told_words(self.head, lesson, self.parts)
        embeddings = self.parts.embed(lesson.tokens)
        predictions = at_all_alignments(self.head, embeddings, lesson.features, told)
        mean = lesson_losses(predictions, lesson, [lesson.counted] * k, self.parts, self.weights)
        losses = torch.stack((mean.total, mean.feature, mean.token)).double().cpu()
        ranks = [
            block_ranks(predicted, lesson, self.parts, k, offset)
            for offset, predicted in enumerate(predictions)
        ]
        return Measured(k * count * losses, k * count, torch.cat(ranks))

    def _lesson(self, batch: Batch, features: Tensor) -> Lesson:
        k = self.head.config.block_size
        return make_lesson(batch.ids, features, batch.is_answer, k, self.parts)


class MedusaTeaching:
    """Each head learns the target's distribution at its own distance."""

    def __init__(self, head: MedusaHead, parts: TargetParts, weights: LossWeights) -> None:
        self.head, self.parts, self.weights = head, parts, weights
        eye = torch.eye(head.config.hidden_size, device=next(head.parameters()).device)
        head.start_from(parts.head(eye).T.float())

    def losses(
        self, batch: Batch, features: Tensor, glance: float, generator: torch.Generator
    ) -> Losses:
        token = torch.stack(
            [
                self._loss(slot, *self._lesson(batch, features, slot))
                for slot in range(self.head.config.block_size)
            ]
        ).sum()
        return Losses(self.weights.token * token, torch.zeros_like(token), token)

    def measure(self, batch: Batch, features: Tensor) -> Measured:
        """At positions whose K foretold tokens are all of answers."""
        k = self.head.config.block_size
        count = max(0, features.shape[1] - k - 1)
        is_answer = [batch.is_answer[:, 2 + slot : 2 + slot + count] for slot in range(k)]
        whole = torch.stack(is_answer).all(0)
        rows, total, ranks = features[:, :count][whole], torch.zeros(()).double(), []
        for slot, branch in enumerate(self.head.branches):
            answers = features[:, 1 + slot : 1 + slot + count][whole]
            total += self._loss(slot, rows, answers).double().cpu()
            ranks.append(ranks_of(branch, rows, self.parts.head(answers).max(-1).indices))
        losses = torch.stack((self.weights.token * total, torch.zeros_like(total), total))
        return Measured(len(rows) * losses, len(rows), torch.stack(ranks, dim=1))

    def _lesson(self, batch: Batch, features: Tensor, slot: int) -> tuple[Tensor, Tensor]:
        """Features [M,H] that head `slot` reads, and those [M,H] that name what it is to say."""
        count = max(0, features.shape[1] - slot - 2)
        counted = batch.is_answer[:, 2 + slot : 2 + slot + count]
        return features[:, :count][counted], features[:, 1 + slot : 1 + slot + count][counted]

    def _loss(self, slot: int, rows: Tensor, answers: Tensor) -> Tensor:
        """Of head `slot`, its mean over rows [M,H], by its weight."""
        picks = self.parts.head(answers).max(-1).indices
        branch = self.head.branches[slot]
        total = token_loss(branch, rows, answers, picks, self.parts, self.weights)
        return MEDUSA_DECAY**slot * total / max(len(rows), 1)


def block_ranks(
    predicted: Tensor, lesson: Lesson, parts: TargetParts, block_size: int, offset: int
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
    return ranks_of(parts.head, rows.flatten(0, 1), picks.flatten()).view(-1, block_size)


def ranks_of(logits_of: Callable[[Tensor], Tensor], rows: Tensor, picks: Tensor) -> Tensor:
    """Rank of picks [M] among the logits of rows [M,H]; `MOST_RANKED` for all beyond."""
    ranks = [picks[:0]]
    for start in range(0, len(rows), ROWS_TOGETHER):
        logits = logits_of(rows[start : start + ROWS_TOGETHER])
        best = logits.topk(min(MOST_RANKED, logits.shape[-1])).indices
        is_hit = best == picks[start : start + ROWS_TOGETHER, None]  # [m, 8]
        ranks.append(torch.where(is_hit.any(-1), is_hit.int().argmax(-1), MOST_RANKED))
    return torch.cat(ranks)


def teaching_of(head: AnyHead, parts: TargetParts, weights: LossWeights, noise: float) -> Teaching:
    if isinstance(head, MedusaHead):
        return MedusaTeaching(head, parts, weights)
    return FalconTeaching(head, parts, weights, noise)
