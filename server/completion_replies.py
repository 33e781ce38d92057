"""The JSON shapes of OpenAI's text completion: one object, or chunks of the same kind.

    chunk with text ... -> chunk with finish_reason -> [last chunk] -> [DONE]

Choices are told apart by `index`, which is prompt * n + choice; their chunks come as they arise.
A whole answer is its chunks joined.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from .completion_schemas import CompletionRequest
from .deltas import Delta
from .echo import EchoedPrompt
from .events import DONE, as_api_error, event
from .legacy_logprobs import joined, legacy
from .reports import last_report, step_report
from .usage import usage, usage_so_far

Choice = dict[str, Any]


class CompletionReplies:
    """Both forms of the answer to one request; `prompts` are given back, if there are any."""

    def __init__(
        self, request: CompletionRequest, prompts: Sequence[EchoedPrompt], request_id: str
    ) -> None:
        self._request = request
        self._prompts = prompts
        self._echoed: dict[int, int] = {}  # tokens of the prompt that a choice has given back
        self._id = f"cmpl-{request_id}"
        self._created = int(time.time())

    async def whole(self, deltas: AsyncGenerator[Delta, None]) -> dict[str, Any]:
        """The answer as one `text_completion`."""
        parts: dict[int, list[Choice]] = {}
        async with aclosing(deltas):
            async for delta in deltas:
                parts.setdefault(delta.index, []).append(self._choice(delta))
        choices = [_whole_choice(parts[index]) for index in sorted(parts)]
        told = {"usage": usage(self._request, delta)} | last_report(self._request, delta)
        return self._head() | {"choices": choices} | told

    async def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, `[DONE]` last, also after an error."""
        head = self._head()
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    told = usage_so_far(self._request, delta) | step_report(self._request, delta)
                    yield event(head | {"choices": [self._choice(delta)]} | told)
            wants_usage = self._request.wants_usage_chunk
            if wants_usage or self._request.wants_stats:
                told = {"usage": usage(self._request, delta)} if wants_usage else {}
                yield event(head | {"choices": []} | told | last_report(self._request, delta))
        except Exception as error:  # noqa: BLE001  # the status is sent: the stream must tell
            yield event(as_api_error(error).body)
        yield DONE

    def _head(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._request.model,
        }

    def _choice(self, delta: Delta) -> Choice:
        """What a delta adds to its choice: first of the prompt, if that is given back."""
        echoed, echoed_offsets, shift = self._echo(delta)
        logprobs = None
        if delta.logprobs is not None:
            entries = [*delta.prompt_logprobs, *delta.logprobs]
            offsets = [*echoed_offsets, *(shift + offset for offset in delta.offsets)]
            logprobs = legacy(entries, offsets)
        return {
            "index": delta.index,
            "text": echoed + delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }

    def _echo(self, delta: Delta) -> tuple[str, list[int], int]:
        """The prompt's next text, where its tokens start, and where the new text does.

        With log-probabilities the prompt comes as they do, else all of it at once.
        """
        if not self._prompts:
            return "", [], 0
        prompt = self._prompts[delta.index // self._request.num_choices]
        first = self._echoed.get(delta.index, 0)
        scored = first + len(delta.prompt_logprobs)
        stop = self._echoed[delta.index] = scored if delta.logprobs is not None else len(prompt)
        return prompt.piece(first, stop), prompt.starts[first:stop], len(prompt.text)


def _whole_choice(chunks: list[Choice]) -> Choice:
    logprobs = [chunk["logprobs"] for chunk in chunks]
    return chunks[-1] | {
        "text": "".join(chunk["text"] for chunk in chunks),
        "logprobs": None if logprobs[-1] is None else joined(logprobs),
    }
