"""What a request is told of its speculation, if it asks: vLLM's `metrics`, llama.cpp's `timings`.

Both count what the engine did, to the last step of the answer: tokens that a stop string cut off
were accepted too. Only `accepted_predicted` leaves them out, for `usage` counts the answer's own.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from engine.messages import RequestOutput


@dataclass(frozen=True, slots=True)
class Figures:
    """One choice's, or a request's, so far.

    `prompt_ms` is from the request's arrival to its first tokens, so it holds what it waited, and
    `predicted_ms` from there to the newest. `steps[n]` steps accepted n drafted tokens; steps that
    neither drafted nor accepted are left out. `widest` is the most nodes that a step verified.
    """

    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    drafted: int = 0
    accepted: int = 0
    widest: int = 0
    steps: tuple[int, ...] = ()
    accepted_predicted: int = 0
    rejected_predicted: int = 0


class Tally:
    """Adds up the steps of one choice."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: float | None = None
        self._drafted = self._accepted = self._widest = 0
        self._steps: list[int] = []
        self._accepted_predicted = self._rejected_predicted = 0

    def add(self, output: RequestOutput, consumed: int) -> Figures:
        """Count a step, of whose tokens the first `consumed` are part of the answer."""
        now = time.perf_counter()
        if self._first is None and output.token_ids:
            self._first = now
        first = now if self._first is None else self._first
        if output.drafted or output.accepted:
            self._steps += [0] * (1 + output.accepted - len(self._steps))
            self._steps[output.accepted] += 1
        self._drafted += output.drafted
        self._accepted += output.accepted
        self._widest = max(self._widest, output.drafted)
        self._accepted_predicted += output.sources[:consumed].count("predicted")
        self._rejected_predicted += output.rejected_predicted
        return Figures(
            prompt_ms=1e3 * (first - self._start),
            predicted_ms=1e3 * (now - first),
            drafted=self._drafted,
            accepted=self._accepted,
            widest=self._widest,
            steps=tuple(self._steps),
            accepted_predicted=self._accepted_predicted,
            rejected_predicted=self._rejected_predicted,
        )


def total(choices: Collection[Figures]) -> Figures:
    """A request's, whose choices run side by side."""
    return Figures(
        prompt_ms=min(own.prompt_ms for own in choices),
        predicted_ms=max(own.predicted_ms for own in choices),
        drafted=sum(own.drafted for own in choices),
        accepted=sum(own.accepted for own in choices),
        widest=max(own.widest for own in choices),
        steps=tuple(map(sum, zip_longest(*(own.steps for own in choices), fillvalue=0))),
        accepted_predicted=sum(own.accepted_predicted for own in choices),
        rejected_predicted=sum(own.rejected_predicted for own in choices),
    )


def metrics(figures: Figures) -> dict[str, Any]:
    """As vLLM words them. Draft tokens are tree nodes: compare lengths rather than rates."""
    steps = sum(figures.steps)
    return {
        "speculative_decoding": {
            "mean_acceptance_length": 1 + figures.accepted / max(1, steps),
            "draft_acceptance_rate": figures.accepted / max(1, figures.drafted),
            "acceptance_histogram": list(figures.steps),
            "num_spec_steps": steps,
            "num_accepted_draft_tokens": figures.accepted,
            "num_draft_tokens": figures.drafted,
            "num_spec_tokens": figures.widest,
        }
    }


def timings(figures: Figures, prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """As llama.cpp words them, for so many tokens; `cached` ones of the prompt took no time."""
    read = prompt - cached
    return {
        "cache_n": cached,
        "prompt_n": read,
        **_pace("prompt", read, figures.prompt_ms),
        "predicted_n": completion,
        **_pace("predicted", completion, figures.predicted_ms),
        "draft_n": figures.drafted,
        "draft_n_accepted": figures.accepted,
    }


def _pace(name: str, count: int, milliseconds: float) -> dict[str, float]:
    return {
        f"{name}_ms": milliseconds,
        f"{name}_per_token_ms": milliseconds / max(1, count),
        f"{name}_per_second": 1e3 * count / milliseconds if milliseconds else 0.0,
    }
