"""The JSON shapes of OpenAI's chat completion: one object, or chunks in their fixed order.

    role chunk -> content chunks -> chunk with finish_reason -> [usage chunk] -> [DONE]

Both are made from the same stream of deltas. Optional fields are left out rather than null, except
where OpenAI's schema requires the key.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from engine.client import EngineDied

from .chat import Delta, Usage
from .errors import ApiError, engine_unavailable, unexpected

DONE = b"data: [DONE]\n\n"
# Legal in JSON, but some SSE clients split lines at them.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


async def completion(
    request_id: str, model: str, deltas: AsyncGenerator[Delta, None]
) -> dict[str, Any]:
    """The whole answer as one `chat.completion`."""
    texts = []
    async with aclosing(deltas):
        async for delta in deltas:
            texts.append(delta.text)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "".join(texts), "refusal": None},
        "logprobs": None,
        "finish_reason": delta.finish_reason,
    }
    head = _head("chat.completion", request_id, model)
    return head | {"choices": [choice], "usage": _usage(delta.usage)}


async def events(
    request_id: str, model: str, deltas: AsyncGenerator[Delta, None], wants_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events, `[DONE]` last, also after an error."""
    head = _head("chat.completion.chunk", request_id, model)
    tail = {"usage": None} if wants_usage else {}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(head | {"choices": [choice]} | tail)

    try:
        yield chunk({"role": "assistant", "content": ""})
        async with aclosing(deltas):
            async for delta in deltas:
                if delta.text:
                    yield chunk({"content": delta.text})
        yield chunk({}, delta.finish_reason)
        if wants_usage:
            yield event(head | {"choices": [], "usage": _usage(delta.usage)})
    except Exception as error:  # noqa: BLE001  # the status is sent: the stream must tell
        yield event(as_api_error(error).body)
    yield DONE


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about an exception that ended its request."""
    match error:
        case ApiError():
            return error
        case EngineDied():
            return engine_unavailable()
        case _:
            return unexpected(error)


def event(body: dict[str, Any]) -> bytes:
    """One `data:` event; never `id:` or `retry:`, which break OpenAI's SDK."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b"data: " + text.translate(_LINE_BREAKS).encode() + b"\n\n"


def _head(kind: str, request_id: str, model: str) -> dict[str, Any]:
    created = int(time.time())
    return {"id": f"chatcmpl-{request_id}", "object": kind, "created": created, "model": model}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
