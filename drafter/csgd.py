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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .model import FalconHead, TargetParts

ROWS_PER_CHUNK = 4096  # rows of logits held at once while the loss is taken


@dataclass(frozen=True, slots=True)
class LossWeights:
    """feature * SmoothL1 + token * (soft * KL + hard * CE); the paper's values by default."""

    feature: float = 1.0
    token: float = 0.1
    soft: float = 0.9
    hard: float = 0.1


@dataclass(frozen=True, slots=True)
class Lesson:
    """A batch seen from the drafter: P = S - K - 1 positions of B sequences.

    `tokens`, `features` are the inputs x_{i+1} [B,P] and f_i [B,P,H]; `answer_tokens`,
    `answer_features` are x_{i+K+1} [B,P] and f_{i+K} [B,P,H]; `told` [B,P,K-1] the tokens before
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
class Losses:
    """Means over the counted positions."""

    total: Tensor
    feature: Tensor
    token: Tensor


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
    """What coupled slots are told at each position: ids [B,S] -> [B,S-K-1,K-1].

    K=3     position 0 is to say x_4 and is told x_3, x_2
    """
    k, count = block_size, ids.shape[1] - block_size - 1
    before = [ids[:, k + 1 - back : k + 1 - back + count] for back in range(1, k)]
    return torch.stack(before, -1) if before else ids.new_zeros(len(ids), count, 0)


def told_words(head: FalconHead, lesson: Lesson, parts: TargetParts) -> Tensor | None:
    """The embeddings [B,P,K-1,H] of what coupled slots are told; None for others."""
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
    """One CSGD step's losses; `glance` is lambda, `noise` the half-width of the feature noise."""
    k = head.config.block_size
    offset = int(torch.randint(k, (), generator=generator))
    features = lesson.features + _uniform_noise(lesson.features, noise, generator)
    tokens, counted, told = lesson.tokens, lesson.counted, told_words(head, lesson, parts)
    if glance > 0 and k > 1:
        with torch.no_grad():
            said = parts.head(head(parts.embed(tokens), features, offset, told)).max(-1).indices
        wrong = ((said != lesson.picks) & counted).sum(1)  # [B]
        revealed = choose_revealed((glance * wrong).long(), counted, k, offset, generator)
        tokens = torch.where(revealed, lesson.answer_tokens, tokens)
        features = torch.where(revealed[..., None], lesson.answer_features, features)
        counted = counted & ~revealed
    predicted = head(parts.embed(tokens), features, offset, told)
    return distillation_losses(predicted, lesson, counted, parts, weights)


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


def distillation_losses(
    predicted: Tensor, lesson: Lesson, counted: Tensor, parts: TargetParts, weights: LossWeights
) -> Losses:
    """SmoothL1 to the answer's feature, KL to its distribution and CE to its pick."""
    rows = predicted[counted]  # [M, H]
    answers = lesson.answer_features[counted]
    picks = lesson.picks[counted]
    count = max(rows.shape[0], 1)
    feature = F.smooth_l1_loss(rows.float(), answers.float(), reduction="sum")
    feature = feature / (count * predicted.shape[-1])

    token = token_loss(parts.head, rows, answers, picks, parts, weights) / count
    return Losses(weights.feature * feature + weights.token * token, feature, token)


def token_loss(
    logits_of: Callable[[Tensor], Tensor],
    rows: Tensor,
    answers: Tensor,
    picks: Tensor,
    parts: TargetParts,
    weights: LossWeights,
) -> Tensor:
    """KL to the distributions of the features `answers` [M,H] and cross-entropy to picks [M], of
    the logits of rows [M,H]; summed. Of many rows, logits are made anew for the gradient.
    """

    def loss(rows: Tensor, answers: Tensor, picks: Tensor) -> Tensor:
        draft = F.log_softmax(logits_of(rows).float(), dim=-1)
        with torch.no_grad():
            target = F.log_softmax(parts.head(answers).float(), dim=-1)
        soft = F.kl_div(draft, target, reduction="sum", log_target=True)
        return weights.soft * soft + weights.hard * F.nll_loss(draft, picks, reduction="sum")

    total = rows.new_zeros((), dtype=torch.float32)
    for start in range(0, rows.shape[0], ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        arguments = rows[chunk], answers[chunk], picks[chunk]
        if rows.shape[0] > ROWS_PER_CHUNK and torch.is_grad_enabled():
            total = total + checkpoint(loss, *arguments, use_reentrant=False)
        else:
            total = total + loss(*arguments)
    return total


def _uniform_noise(like: Tensor, width: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(like.shape, generator=generator) * 2 - 1
    return (width * noise).to(like)
