"""The JSON shapes of OpenAI's chat completion: one object, or chunks in their fixed order.

    role chunk -> a chunk for each part -> chunk with finish_reason -> [last chunk] -> [DONE]

With several choices each has the first three, told apart by `index`: all roles come first, then the
choices' chunks as they arise. The last chunk has no choice, but the usage and figures that were
asked for. Both forms are made from the same stream of deltas. Optional fields are left out rather
than null, except where OpenAI's schema requires the key. Reasoning goes by both its names, vLLM's
`reasoning` and everybody else's `reasoning_content`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from .chat_schemas import ChatCompletionRequest
from .deltas import Delta
from .events import DONE, as_api_error, event
from .parts import Part, Reasoning, Text, ToolCall, put_together
from .reports import last_report, step_report
from .usage import usage, usage_so_far


class ChatReplies:
    """Both forms of the answer to one request."""

    def __init__(self, request: ChatCompletionRequest, request_id: str) -> None:
        self._request = request
        self._id = f"chatcmpl-{request_id}"
        self._created = int(time.time())

    async def whole(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """The answer as one `chat.completion`."""
        found: dict[int, list[Delta]] = {}
        async with aclosing(deltas):
            async for delta in deltas:
                found.setdefault(delta.index, []).append(delta)
        choices = [_choice(found[index]) for index in sorted(found)]
        told = {"usage": usage(self._request, delta)} | last_report(self._request, delta)
        return self._head("chat.completion") | {"choices": choices} | told

    async def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, `[DONE]` last, also after an error."""
        head = self._head("chat.completion.chunk")
        unknown = usage_so_far(self._request, None)
        try:
            for index in range(self._request.num_choices):
                role = {"role": "assistant", "content": ""}
                yield event(head | {"choices": [_chunk_choice(index, role)]} | unknown)
            async with aclosing(deltas):
                async for delta in deltas:
                    tail = usage_so_far(self._request, delta)
                    for choices, told in self._chunks(delta):
                        yield event(head | {"choices": choices} | tail | told)
            wants_usage = self._request.wants_usage_chunk
            if wants_usage or self._request.wants_stats:
                told = {"usage": usage(self._request, delta)} if wants_usage else {}
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

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
        }


def _choice(deltas: list[Delta]) -> dict[str, Any]:
    """One choice of a whole answer."""
    entries = [entry for delta in deltas for entry in delta.logprobs or []]
    return {
        "index": deltas[-1].index,
        "message": _message([part for delta in deltas for part in delta.parts]),
        "logprobs": None if deltas[-1].logprobs is None else _logprobs(entries),
        "finish_reason": deltas[-1].finish_reason,
    }


def _message(parts: list[Part]) -> dict[str, Any]:
    """`content` is null only beside something else."""
    said = put_together(parts)
    rest: dict[str, Any] = {}
    if said.reasoning:
        rest |= _reasoning(said.reasoning)
    if said.calls:
        rest["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in said.calls
        ]
    content = None if rest and not said.text else said.text
    return {"role": "assistant", "content": content, "refusal": None} | rest


def _chunk_choices(delta: Delta) -> Iterator[dict[str, Any]]:
    """A chunk for each part of a delta, and its choice's last one, if it ends.

    Entries of log-probabilities go with the first of them.
    """
    logprobs = _logprobs(delta.logprobs) if delta.logprobs else None
    for part in delta.parts:
        yield _chunk_choice(delta.index, _part_delta(part), logprobs)
        logprobs = None
    if delta.finish_reason is not None:
        yield _chunk_choice(delta.index, {}, logprobs, delta.finish_reason)


def _part_delta(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return {"content": part.text}
        case Reasoning():
            return _reasoning(part.text)
        case ToolCall():
            return {"tool_calls": [_call_delta(part)]}


def _call_delta(call: ToolCall) -> dict[str, Any]:
    """Who is called is told once, then only more of the arguments."""
    if not call.is_start:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": ""}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _reasoning(text: str) -> dict[str, str]:
    return {"reasoning": text, "reasoning_content": text}


def _chunk_choice(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": entries, "refusal": None}
