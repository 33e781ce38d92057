"""What a prediction costs: SmoothL1 to the target's feature, KL to its distribution, cross-entropy
to its pick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .model import TargetParts

LOGITS_HELD = 1 << 28  # at once, of what is predicted, while the loss is taken


@dataclass(frozen=True, slots=True)
class LossWeights:
    """feature * SmoothL1 + token * (soft * KL + hard * CE); the paper's values by default."""

    feature: float = 1.0
    token: float = 0.1
    soft: float = 0.9
    hard: float = 0.1


@dataclass(frozen=True, slots=True)
class Losses:
    """Means over the counted positions."""

    total: Tensor
    feature: Tensor
    token: Tensor


def distillation_losses(
    rows: Tensor, answers: Tensor, picks: Tensor, parts: TargetParts, weights: LossWeights
) -> Losses:
    """Of predicted features `rows` [M,H]; the target has `answers` [M,H] and says `picks` [M]."""
    count = max(rows.shape[0], 1)
    feature = F.smooth_l1_loss(rows.float(), answers.float(), reduction="sum")
    feature = feature / (count * rows.shape[-1])
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
        found: Tensor = DistillationLoss.apply(  # type: ignore[no-untyped-call]  # torch's
            logits_of(rows), target, picks, weights.soft, weights.hard
        )
        return found

    total = rows.new_zeros((), dtype=torch.float32)
    if not len(rows):
        return total
    together = max(1, LOGITS_HELD // parts.head(answers[:1]).shape[-1])
    for start in range(0, rows.shape[0], together):
        chunk = slice(start, start + together)
        arguments = rows[chunk], answers[chunk], picks[chunk]
        if rows.shape[0] > together and torch.is_grad_enabled():
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
        if draft.requires_grad:
            gradient = q.mul_(soft + hard).sub_(p, alpha=soft)
            gradient.scatter_add_(-1, picks[:, None], torch.full_like(at_picks, -hard))
            ctx.save_for_backward(gradient.to(draft.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0], None, None, None, None


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Chances [M,V] float32 of logits [M,V], and the logarithm [M,1] of each row's divisor."""
    chances = logits.softmax(-1, dtype=torch.float32)
    largest = logits.amax(-1, keepdim=True).float()
    return chances, largest - chances.amax(-1, keepdim=True).log()
