"""Server-sent events as OpenAI's clients read them, whatever the endpoint."""

from __future__ import annotations

import json
from typing import Any

from engine.client import EngineError

from .errors import ApiError, from_engine, unexpected

DONE = b"data: [DONE]\n\n"
# Legal in JSON, but some SSE clients split lines at them.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about an exception that ended its request."""
    match error:
        case ApiError():
            return error
        case EngineError():
            return from_engine(error)
        case _:
            return unexpected(error)


def event(body: dict[str, Any]) -> bytes:
    """One `data:` event; never `id:` or `retry:`, which break OpenAI's SDK."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b"data: " + text.translate(_LINE_BREAKS).encode() + b"\n\n"


def named_event(body: dict[str, Any]) -> bytes:
    """The same with the body's `type` as the event's name."""
    return f"event: {body['type']}\n".encode() + event(body)
