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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
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
    """One CSGD step's losses, their means over all alignments of the blocks, so that every slot
    learns at every position; `glance` is lambda, `noise` the half-width of the feature noise.
    """
    k = head.config.block_size
    features = lesson.features + _uniform_noise(lesson.features, noise, generator)
    told = told_words(head, lesson, parts)
    each = []
    for offset in range(k):
        shown = Shown(lesson.tokens, features, lesson.counted)
        if glance > 0 and k > 1:
            shown = glanced(head, parts, lesson, shown, told, offset, glance, generator)
        predicted = head(parts.embed(shown.tokens), shown.features, offset, told)
        each.append(distillation_losses(predicted, lesson, shown.counted, parts, weights))
    return Losses(
        total=torch.stack([one.total for one in each]).mean(),
        feature=torch.stack([one.feature for one in each]).mean(),
        token=torch.stack([one.token for one in each]).mean(),
    )


def glanced(
    head: FalconHead,
    parts: TargetParts,
    lesson: Lesson,
    shown: Shown,
    told: Tensor | None,
    offset: int,
    glance: float,
    generator: torch.Generator,
) -> Shown:
    """What is shown once answers are revealed, as many as a first guess calls for."""
    with torch.no_grad():
        guess = head(parts.embed(shown.tokens), shown.features, offset, told)
        said = parts.head(guess).max(-1).indices
    wrong = ((said != lesson.picks) & shown.counted).sum(1)  # [B]
    budget, k = (glance * wrong).long(), head.config.block_size
    revealed = choose_revealed(budget, shown.counted, k, offset, generator)
    return Shown(
        tokens=torch.where(revealed, lesson.answer_tokens, shown.tokens),
        features=torch.where(revealed[..., None], lesson.answer_features, shown.features),
        counted=shown.counted & ~revealed,
    )


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
        with torch.no_grad():
            target = parts.head(answers)
        found: Tensor = DistillationLoss.apply(  # type: ignore[no-untyped-call]
            logits_of(rows), target, picks, weights.soft, weights.hard
        )
        return found

    total = rows.new_zeros((), dtype=torch.float32)
    for start in range(0, rows.shape[0], ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        arguments = rows[chunk], answers[chunk], picks[chunk]
        if rows.shape[0] > ROWS_PER_CHUNK and torch.is_grad_enabled():
            total = total + checkpoint(loss, *arguments, use_reentrant=False)
        else:
            total = total + loss(*arguments)
    return total


class DistillationLoss(torch.autograd.Function):
    """soft * KL(target || draft) + hard * CE(picks), summed, of logits [M,V] and picks [M].

    As torch's own operations would give it, in a third of their passes over [M,V]: with p and q the
    distributions of target and draft, the gradient is (soft + hard) q - soft p - hard at the pick.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, draft: Tensor, target: Tensor, picks: Tensor, soft: float, hard: float
    ) -> Tensor:
        q, log_sum = _softmax(draft)
        p, target_log_sum = _softmax(target)
        at_picks = draft.gather(-1, picks[:, None]).float()
        loss = torch.dot(p.flatten(), (target.float() - draft).flatten()) * soft
        loss += (log_sum * (soft + hard) - target_log_sum * soft - hard * at_picks).sum()
        gradient = q.mul_(soft + hard).sub_(p, alpha=soft)
        gradient.scatter_add_(-1, picks[:, None], torch.full_like(at_picks, -hard))
        ctx.save_for_backward(gradient.to(draft.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None, None


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Chances [M,V] float32 of logits [M,V], and the logarithm [M,1] of each row's divisor."""
    chances = logits.softmax(-1, dtype=torch.float32)
    largest = logits.amax(-1, keepdim=True).float()
    return chances, largest - chances.amax(-1, keepdim=True).log()


def _uniform_noise(like: Tensor, width: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(like.shape, generator=generator) * 2 - 1
    return (width * noise).to(like)
