"""The `usage` of every endpoint's replies."""

from __future__ import annotations

from typing import Any

from .deltas import Delta
from .parameters import Parameters


def usage(request: Parameters, delta: Delta) -> dict[str, Any]:
    """The request's up to `delta`.

    Rejected tokens of a prediction are counted beside the completion's, not among them.
    """
    total = delta.usage
    details = {"reasoning_tokens": total.reasoning_tokens}
    if request.has_prediction:
        details |= {
            "accepted_prediction_tokens": delta.figures.accepted_predicted,
            "rejected_prediction_tokens": delta.figures.rejected_predicted,
        }
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
        "completion_tokens_details": details,
    }


def usage_so_far(request: Parameters, delta: Delta | None) -> dict[str, Any]:
    """What a chunk other than the last says of it; `delta` is None before the first."""
    if not request.wants_usage_chunk:
        return {}
    if delta is None or not request.wants_usage_always:
        return {"usage": None}
    return {"usage": usage(request, delta)}
