"""The `usage` of every endpoint's replies."""

from __future__ import annotations

from typing import Any

from .deltas import Usage
from .parameters import Parameters


def usage(total: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": total.reasoning_tokens},
    }


def usage_so_far(request: Parameters, total: Usage | None) -> dict[str, Any]:
    """What a chunk other than the last says of it; `total` is None as long as nothing is known."""
    if not request.wants_usage_chunk:
        return {}
    if total is None or not request.wants_usage_always:
        return {"usage": None}
    return {"usage": usage(total)}
