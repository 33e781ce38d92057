"""Coupled Sequential Glancing Distillation (paper §3.2): what is shown, what is paid for.

A first pass without gradients counts the wrong tokens. Then N = lambda * wrong positions, taken as
contiguous prefixes of blocks, have both their input token and their input feature replaced by the
answer. The second pass takes the loss on all positions that were not revealed.

    K=2, block at positions 4 5, position 4 revealed
    position        4                          5
    input           x_7, f_6 (was x_5, f_4)    x_6, f_5
    answer          f_6 -> x_7 (no loss)       f_7 -> x_8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .distillation import Losses, LossWeights, distillation_losses
from .model import FalconHead, TargetParts


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch seen from the drafter: P = S - K - 1 positions of B sequences.

    `tokens`, `features` are the inputs x_{i+1} [B,P] and f_i [B,P,H]; `answer_tokens`,
    `answer_features` are x_{i+K+1} [B,P] and f_{i+K} [B,P,H]; `told` [B,P,K] the tokens before
    x_{i+K+1}, the newest first; `picks` [B,P] is what the target itself says after f_{i+K};
    `counted` [B,P] bool marks positions whose loss counts.
    """

    tokens: Tensor
    told: Tensor
    features: Tensor
    answer_tokens: Tensor
    answer_features: Tensor
    picks: Tensor
    counted: Tensor


@dataclass(frozen=True, slots=True)
class Shown:
    """What the drafter reads, tokens [B,P] and features [B,P,H], and whose loss counts [B,P]."""

    tokens: Tensor
    features: Tensor
    counted: Tensor

    def revealing(self, lesson: Lesson, revealed: Tensor) -> Shown:
        """With the answers in place at the positions `revealed` [B,P]."""
        return Shown(
            tokens=torch.where(revealed, lesson.answer_tokens, self.tokens),
            features=torch.where(revealed[..., None], lesson.answer_features, self.features),
            counted=self.counted & ~revealed,
        )


def make_lesson(
    ids: Tensor, features: Tensor, is_answer: Tensor, block_size: int, parts: TargetParts
) -> Lesson:
    """Align a batch: ids [B,S], target features [B,S,H], is_answer [B,S] bool.

    ids       x_0 x_1 x_2 x_3 x_4       K=2: position 0 reads x_1, f_0 and is to say f_2, x_3
    features  f_0 f_1 f_2 f_3 f_4
    """
    k, count = block_size, ids.shape[1] - block_size - 1
    answer_features = features[:, k : k + count]
    return Lesson(
        tokens=ids[:, 1 : 1 + count],
        told=told_tokens(ids, k),
        features=features[:, :count],
        answer_tokens=ids[:, k + 1 : k + 1 + count],
        answer_features=answer_features,
        picks=parts.head(answer_features).max(-1).indices,
        counted=is_answer[:, k + 1 : k + 1 + count],
    )


def told_tokens(ids: Tensor, block_size: int) -> Tensor:
    """What coupled slots are told at each position: ids [B,S] -> [B,S-K-1,K].

    K=3     position 0 is to say x_4 and is told x_3, x_2, x_1
    """
    k, count = block_size, ids.shape[1] - block_size - 1
    return torch.stack([ids[:, k - back : k - back + count] for back in range(k)], dim=-1)


def told_words(head: FalconHead, lesson: Lesson, parts: TargetParts) -> Tensor | None:
    """The embeddings [B,P,K,H] of what coupled slots are told; None for others."""
    return parts.embed(lesson.told) if head.config.coupled else None


def csgd_losses(
    head: FalconHead,
    parts: TargetParts,
    lesson: Lesson,
    glance: float,
    weights: LossWeights,
    generator: torch.Generator,
    noise: float = 0.1,
) -> Losses:
    """One CSGD step's losses, over all alignments of the blocks, so that every slot learns at every
    position; `glance` is lambda, `noise` the half-width of the feature noise.
    """
    k = head.config.block_size
    features = lesson.features + _uniform_noise(lesson.features, noise, generator)
    plain = Shown(lesson.tokens, features, lesson.counted)
    told = told_words(head, lesson, parts)
    if glance > 0 and k > 1:
        with torch.no_grad():
            guesses = at_all_alignments(head, parts.embed(plain.tokens), features, told)
        each, predictions = [], []
        for offset, guess in enumerate(guesses):
            said = parts.head(guess).max(-1).indices
            wrong = ((said != lesson.picks) & lesson.counted).sum(1)  # [B]
            budget = (glance * wrong).long()
            revealed = choose_revealed(budget, lesson.counted, k, offset, generator)
            shown = plain.revealing(lesson, revealed)
            predictions.append(head(parts.embed(shown.tokens), shown.features, offset, told))
            each.append(shown.counted)
    else:
        each = [plain.counted] * k
        predictions = at_all_alignments(head, parts.embed(plain.tokens), features, told)
    return lesson_losses(predictions, lesson, each, parts, weights)


def at_all_alignments(
    head: FalconHead, embeddings: Tensor, features: Tensor, told: Tensor | None
) -> list[Tensor]:
    """Predictions [B,P,H] for each of the K places that blocks may begin at."""
    read = head.read(embeddings, features)
    return [head.predict(read, offset, told) for offset in range(head.config.block_size)]


def lesson_losses(
    predictions: Sequence[Tensor],
    lesson: Lesson,
    counted: Sequence[Tensor],
    parts: TargetParts,
    weights: LossWeights,
) -> Losses:
    """Of predictions [B,P,H] and what counts [B,P] at each of the K alignments, all together."""
    block_size = len(predictions)
    wanted = [
        own & is_whole(own.shape[1], block_size, offset).to(own.device)
        for offset, own in enumerate(counted)
    ]
    rows = [own[which] for own, which in zip(predictions, wanted, strict=True)]
    answers = [lesson.answer_features[which] for which in wanted]
    picks = [lesson.picks[which] for which in wanted]
    return distillation_losses(
        torch.cat(rows), torch.cat(answers), torch.cat(picks), parts, weights
    )


def is_whole(length: int, block_size: int, offset: int) -> Tensor:
    """Which of the positions [S] are in blocks that do not reach beyond the last one."""
    positions = torch.arange(length)
    return positions - (positions + offset) % block_size + block_size <= length


def choose_revealed(
    budget: Tensor, counted: Tensor, block_size: int, offset: int, generator: torch.Generator
) -> Tensor:
    """Which positions to reveal: [B,P] bool, at most `budget` [B] per sequence.

    Blocks that are counted whole are taken in random order, each giving a prefix of 1 to K-1
    positions, until the budget is spent; the last prefix is cut to what is left.
    """
    batch, length = counted.shape
    positions = torch.arange(length)
    block, slot = (positions + offset) // block_size, (positions + offset) % block_size
    num_blocks = int(block[-1]) + 1
    prefix = torch.randint(1, block_size, (batch, num_blocks), generator=generator)
    order = torch.rand(batch, num_blocks, generator=generator)  # smaller is revealed earlier
    missing = torch.zeros(batch, num_blocks).index_add_(1, block, (~counted.cpu()).float())
    missing += block_size - block.bincount(minlength=num_blocks)  # blocks cut by the row's ends
    wanted = (slot < prefix[:, block]) & (missing[:, block] == 0)  # [B, P]
    priority = torch.where(wanted, order[:, block], torch.inf)
    place = priority.argsort(dim=1, stable=True).argsort(dim=1)
    taken = place < budget.cpu()[:, None]
    return (taken & wanted).to(counted.device)


def _uniform_noise(like: Tensor, width: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(like.shape, generator=generator) * 2 - 1
    return (width * noise).to(like)
