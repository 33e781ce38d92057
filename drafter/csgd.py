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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .distillation import Losses, LossWeights, distillation_losses
from .model import FalconHead, TargetParts
from .rollout import roll_out

PREDICTIONS = 4  # of each position in a step


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
    passes: int = 1,
) -> Losses:
    """One CSGD step's losses; `glance` is lambda, `noise` the half-width of the feature noise.

    They are over all alignments of the blocks, so that every slot learns at every position, or over
    those drawn for this step, where there are more than `PREDICTIONS` with all `passes` of each
    (`rollout.py`).
    """
    k, length = head.config.block_size, lesson.tokens.shape[1]
    features = lesson.features + _uniform_noise(lesson.features, noise, generator)
    plain = Shown(lesson.tokens, features, lesson.counted)
    told = told_words(head, lesson, parts)
    offsets = draw_offsets(k, max(1, PREDICTIONS // passes), generator)
    shown, is_glancing = [plain] * len(offsets), glance > 0 and k > 1
    if is_glancing:
        with torch.no_grad():
            guesses = at_alignments(head, parts.embed(plain.tokens), features, told, offsets)
        for number, (offset, guess) in enumerate(zip(offsets, guesses, strict=True)):
            wrong = (parts.head(guess).max(-1).indices != lesson.picks) & lesson.counted
            budget = (glance * wrong.sum(1)).long()  # [B]
            revealed = choose_revealed(budget, lesson.counted, k, offset, generator)
            shown[number] = plain.revealing(lesson, revealed)
    if is_glancing or passes > 1:
        predictions = [
            predicted
            for offset, one in zip(offsets, shown, strict=True)
            for predicted in roll_out(
                head, parts.embed(one.tokens), one.features, offset, told, passes
            )
        ]
    else:
        predictions = at_alignments(head, parts.embed(plain.tokens), features, told, offsets)
    counted = [
        one.counted & is_taught(length, k, offset, number).to(one.counted.device)
        for offset, one in zip(offsets, shown, strict=True)
        for number in range(passes)
    ]
    return lesson_losses(predictions, lesson, counted, parts, weights)


def draw_offsets(block_size: int, most: int, generator: torch.Generator) -> list[int]:
    """So many of the places that blocks may begin at, or all, in order."""
    if block_size <= most:
        return list(range(block_size))
    return sorted(torch.randperm(block_size, generator=generator)[:most].tolist())


def at_alignments(
    head: FalconHead,
    embeddings: Tensor,
    features: Tensor,
    told: Tensor | None,
    offsets: Iterable[int],
) -> list[Tensor]:
    """Predictions [B,P,H] for each of the places that blocks may begin at."""
    reading = head.read(embeddings, features)
    return [head.predict([reading], offset, told) for offset in offsets]


def lesson_losses(
    predictions: Sequence[Tensor],
    lesson: Lesson,
    counted: Sequence[Tensor],
    parts: TargetParts,
    weights: LossWeights,
) -> Losses:
    """Of predictions [B,P,H] and what counts [B,P] of each, all together."""
    rows = [own[which] for own, which in zip(predictions, counted, strict=True)]
    answers = [lesson.answer_features[which] for which in counted]
    picks = [lesson.picks[which] for which in counted]
    return distillation_losses(
        torch.cat(rows), torch.cat(answers), torch.cat(picks), parts, weights
    )


def is_taught(length: int, block_size: int, offset: int, number: int = 0) -> Tensor:
    """Which of the positions [S] are in blocks that do not reach beyond the last one, and that
    pass `number` of a draft says something of (`roll_out`).
    """
    positions = torch.arange(length)
    blocks, slots = (positions + offset) // block_size, (positions + offset) % block_size
    return (positions - slots + block_size <= length) & (blocks >= (number and number + 1))


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
