"""The JSON shapes of OpenAI's chat completion: one object, or chunks in their fixed order.

    role chunk -> content chunks -> chunk with finish_reason -> [usage chunk] -> [DONE]

With several choices each has the first three, told apart by `index`: all roles come first, then the
choices' chunks as they arise. Both are made from the same stream of deltas. Optional fields are
left out rather than null, except where OpenAI's schema requires the key.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from engine.client import EngineError

from .deltas import Delta, Usage
from .errors import ApiError, from_engine, unexpected

DONE = b"data: [DONE]\n\n"
# Legal in JSON, but some SSE clients split lines at them.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


async def completion(
    request_id: str, model: str, deltas: AsyncGenerator[Delta, None]
) -> dict[str, Any]:
    """The whole answer as one `chat.completion`."""
    parts: dict[int, list[Delta]] = {}
    async with aclosing(deltas):
        async for delta in deltas:
            parts.setdefault(delta.index, []).append(delta)
    head = _head("chat.completion", request_id, model)
    choices = [_choice(parts[index]) for index in sorted(parts)]
    return head | {"choices": choices, "usage": _usage(delta.usage)}


def _choice(deltas: list[Delta]) -> dict[str, Any]:
    """One choice of a whole answer."""
    text = "".join(delta.text for delta in deltas)
    entries = [entry for delta in deltas for entry in delta.logprobs or []]
    return {
        "index": deltas[-1].index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if deltas[-1].logprobs is None else _logprobs(entries),
        "finish_reason": deltas[-1].finish_reason,
    }


async def events(
    request_id: str,
    model: str,
    deltas: AsyncGenerator[Delta, None],
    num_choices: int,
    wants_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events, `[DONE]` last, also after an error."""
    head = _head("chat.completion.chunk", request_id, model)
    tail = {"usage": None} if wants_usage else {}
    try:
        for index in range(num_choices):
            role = {"role": "assistant", "content": ""}
            yield event(head | {"choices": [_chunk_choice(index, role)]} | tail)
        async with aclosing(deltas):
            async for delta in deltas:
                for choice in _chunk_choices(delta):
                    yield event(head | {"choices": [choice]} | tail)
        if wants_usage:
            yield event(head | {"choices": [], "usage": _usage(delta.usage)})
    except Exception as error:  # noqa: BLE001  # the status is sent: the stream must tell
        yield event(as_api_error(error).body)
    yield DONE


def _chunk_choices(delta: Delta) -> Iterator[dict[str, Any]]:
    """A delta's content chunk, if it has text, and its choice's last chunk, if it ends.

    Entries of log-probabilities go with the text, those of an end without text with the end.
    """
    logprobs = _logprobs(delta.logprobs) if delta.logprobs else None
    if delta.text:
        yield _chunk_choice(delta.index, {"content": delta.text}, logprobs)
        logprobs = None
    if delta.finish_reason is not None:
        yield _chunk_choice(delta.index, {}, logprobs, delta.finish_reason)


def _chunk_choice(
    index: int,
    delta: dict[str, str],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": entries, "refusal": None}


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
