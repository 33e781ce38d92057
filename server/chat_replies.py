"""The JSON shapes of OpenAI's chat completion: one object, or chunks in their fixed order.

    role chunk -> content chunks -> chunk with finish_reason -> [last chunk] -> [DONE]

With several choices each has the first three, told apart by `index`: all roles come first, then the
choices' chunks as they arise. The last chunk has no choice, but the usage and figures that were
asked for. Both forms are made from the same stream of deltas. Optional fields are left out rather
than null, except where OpenAI's schema requires the key.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from .chat_schemas import ChatCompletionRequest
from .deltas import Delta, Usage
from .events import DONE, as_api_error, event
from .reports import last_report, step_report


class ChatReplies:
    """Both forms of the answer to one request."""

    def __init__(self, request: ChatCompletionRequest, request_id: str) -> None:
        self._request = request
        self._id = f"chatcmpl-{request_id}"
        self._created = int(time.time())

    async def whole(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """The answer as one `chat.completion`."""
        parts: dict[int, list[Delta]] = {}
        async with aclosing(deltas):
            async for delta in deltas:
                parts.setdefault(delta.index, []).append(delta)
        choices = [_choice(parts[index]) for index in sorted(parts)]
        told = {"usage": self._usage(delta)} | last_report(self._request, delta)
        return self._head("chat.completion") | {"choices": choices} | told

    async def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, `[DONE]` last, also after an error."""
        head = self._head("chat.completion.chunk")
        wants_usage = self._request.wants_usage_chunk
        tail = {"usage": None} if wants_usage else {}
        try:
            for index in range(self._request.num_choices):
                role = {"role": "assistant", "content": ""}
                yield event(head | {"choices": [_chunk_choice(index, role)]} | tail)
            async with aclosing(deltas):
                async for delta in deltas:
                    for choices, told in self._chunks(delta):
                        yield event(head | {"choices": choices} | tail | told)
            if wants_usage or self._request.wants_stats:
                told = {"usage": self._usage(delta)} if wants_usage else {}
                yield event(head | {"choices": []} | told | last_report(self._request, delta))
        except Exception as error:  # noqa: BLE001  # the status is sent: the stream must tell
            yield event(as_api_error(error).body)
        yield DONE

    def _chunks(self, delta: Delta) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Choices of each chunk, and what else it says: the step's report goes with the first."""
        told = step_report(self._request, delta)
        for choice in _chunk_choices(delta):
            yield [choice], told
            told = {}
        if told:
            yield [], told

    def _usage(self, delta: Delta) -> dict[str, Any]:
        """Rejected tokens of a prediction are counted beside the completion's, not among them."""
        if self._request.prediction is None:
            return usage(delta.usage)
        details = {
            "accepted_prediction_tokens": delta.figures.accepted_predicted,
            "rejected_prediction_tokens": delta.figures.rejected_predicted,
        }
        return usage(delta.usage) | {"completion_tokens_details": details}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
        }


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


def usage(total: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
    }
