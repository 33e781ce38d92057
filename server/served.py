"""What the routes serve."""

from __future__ import annotations

from dataclasses import dataclass

from engine.client import EngineClient

from .dialects import Dialect
from .metrics import Metrics
from .tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model, under one name, by one engine."""

    name: str
    created: int
    context_length: int
    tokenizer: ChatTokenizer
    engine: EngineClient
    metrics: Metrics
    dialect: Dialect
    scores_prompts: bool = True
