"""What a training run is asked to do; kept in its checkpoint, so that a resumed run is the same."""

from __future__ import annotations

import math

import msgspec

from .config import DrafterError

# Settings that change when things are written, never what is learned.
CADENCE = frozenset({"save_every", "eval_every", "log_every"})

POSITIVE = ("epochs", "steps", "minutes", "learning_rate", "batch_tokens", "max_gradient", *CADENCE)


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The length of a run is `minutes` where given, else `steps`, else `epochs`."""

    epochs: int = 3
    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup: float = 0.03
    final_rate: float = 0.05
    max_gradient: float = 0.5
    glance: float = 0.4
    noise: float = 0.1
    feature_weight: float = 1.0
    token_weight: float = 0.1
    batch_tokens: int = 4096
    seed: int = 0
    save_every: int = 500
    eval_every: int = 500
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise DrafterError(f"{name} must be positive, not {value}")
        for name in ("glance", "noise", "feature_weight", "token_weight", "seed"):
            if not getattr(self, name) >= 0:
                raise DrafterError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.feature_weight == 0 and self.token_weight == 0:
            raise DrafterError("feature_weight and token_weight must not both be 0")


def learning_rate_at(progress: float, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine down to `final_rate` of the peak; `progress` in 0..1."""
    if progress < settings.warmup:
        return settings.learning_rate * max(progress / settings.warmup, 0.01)
    share = min((progress - settings.warmup) / (1 - settings.warmup), 1.0)
    falling = 0.5 * (1 + math.cos(math.pi * share))
    return settings.learning_rate * (settings.final_rate + (1 - settings.final_rate) * falling)
