"""What the routes serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.client import EngineClient
from engine.messages import Ready

from .dialects import Dialect
from .errors import model_loading
from .metrics import Metrics
from .tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from .tracing import Tracing


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model by one engine, under any of its names; the first is its own."""

    names: tuple[str, ...]
    created: int
    tokenizer: ChatTokenizer
    engine: EngineClient
    metrics: Metrics
    dialect: Dialect
    tracing: Tracing | None = None

    @property
    def context_length(self) -> int:
        """In tokens. Raises `ApiError` 503 while the model is being loaded."""
        return self._ready.context_length

    @property
    def scores_prompts(self) -> bool:
        """Whether log-probabilities of prompts can be asked for. Raises as `context_length`."""
        return self._ready.scores_prompts

    @property
    def _ready(self) -> Ready:
        if self.engine.ready is None:
            raise model_loading()
        return self.engine.ready
