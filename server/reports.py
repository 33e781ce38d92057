"""What an object or a chunk says beside the answer, to clients that ask for it by name."""

from __future__ import annotations

from typing import Any

from .deltas import Delta
from .figures import metrics, timings
from .parameters import Parameters


def step_report(request: Parameters, delta: Delta) -> dict[str, Any]:
    """Keys of a streamed chunk: the first of a delta, or one of its own."""
    told = {} if delta.trace is None else {"falcon": delta.trace}
    return told | _timings(delta) if request.timings_per_token else told


def last_report(request: Parameters, delta: Delta) -> dict[str, Any]:
    """Keys of a whole reply, or of a stream's last chunk, after the last `delta`."""
    if request.wants_stats:
        return {"metrics": metrics(delta.figures)} | _timings(delta)
    return _timings(delta) if request.timings_per_token else {}


def _timings(delta: Delta) -> dict[str, Any]:
    usage = delta.usage
    counts = usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
    return {"timings": timings(delta.figures, *counts)}
