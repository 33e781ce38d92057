"""The JSON of a response: one object, or events in OpenAI's order, numbered from 0.

    response.created -> response.in_progress -> the events of each output item
    -> response.completed | response.incomplete | error -> response.failed

The whole object is the one that the last event carries. Streams of responses name their events and
have no [DONE].
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import count

from .deltas import Delta, Usage
from .errors import ApiError, renamed
from .events import as_api_error, named_event
from .reports import last_report
from .response_echo import echo
from .response_output import Json, Output
from .response_schemas import FORMAT_NAMES, ResponseRequest


class ResponseReplies:
    """Both forms of the answer to one request."""

    def __init__(self, request: ResponseRequest, request_id: str) -> None:
        self._head = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": int(time.time()),
        }
        self._request = request
        self._echo = echo(request)
        self._output = Output(request_id)

    async def whole(self, deltas: AsyncGenerator[Delta, None]) -> Json:
        """The answer as one `response`."""
        async with aclosing(self._story(deltas)) as story:
            async for event in story:
                last = event
        response: Json = last["response"]
        return response

    async def events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        numbers = count()
        try:
            async with aclosing(self._story(deltas)) as story:
                async for event in story:
                    yield named_event(_numbered(event, next(numbers)))
        except Exception as error:  # noqa: BLE001  # the status is sent: the stream must tell
            for event in self._failure(renamed(as_api_error(error), FORMAT_NAMES)):
                yield named_event(_numbered(event, next(numbers)))

    async def _story(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Json, None]:
        yield self._lifecycle_event("created", "in_progress")
        yield self._lifecycle_event("in_progress", "in_progress")
        async with aclosing(deltas):
            async for delta in deltas:
                for event in self._output.add(delta.parts, delta.logprobs or []):
                    yield event
        status = "incomplete" if delta.finish_reason == "length" else "completed"
        for event in self._output.finish(status):
            yield event
        told = {"usage": usage(delta.usage)} | last_report(self._request, delta)
        yield self._lifecycle_event(status, status, **told)

    def _failure(self, error: ApiError) -> Iterator[Json]:
        """`error` has its fields where OpenAI's schema has them, and where its clients look."""
        detail = error.body["error"]
        own = {name: detail[name] for name in ("code", "message", "param")}
        yield {"type": "error", **own, "error": detail}
        told = {"code": "server_error", "message": detail["message"]}
        yield self._lifecycle_event("failed", "failed", error=told)

    def _lifecycle_event(self, name: str, status: str, **fields: Json) -> Json:
        return {"type": f"response.{name}", "response": self._response(status) | fields}

    def _response(self, status: str) -> Json:
        is_incomplete = status == "incomplete"
        return (
            self._head
            | {
                "status": status,
                "completed_at": int(time.time()) if status == "completed" else None,
                "error": None,
                "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete else None,
                "output": self._output.items,
            }
            | self._echo
        )


def _numbered(event: Json, number: int) -> Json:
    return {"type": event["type"], "sequence_number": number} | event


def usage(total: Usage) -> Json:
    """Nothing is written to a cache at the client's order, hence the 0."""
    return {
        "input_tokens": total.prompt_tokens,
        "input_tokens_details": {"cached_tokens": total.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": total.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": total.reasoning_tokens},
        "total_tokens": total.prompt_tokens + total.completion_tokens,
    }
