"""One streaming chat completion as its user sees it: when text came, and how it ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import msgspec

REFUSALS = {429, 503}  # busy, or away for a moment: the client may come back
Outcome = Literal["completed", "refused", "failed"]


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    delta: Delta = Delta()


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    completion_tokens: int
    prompt_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Chunk(msgspec.Struct, frozen=True):
    """What this client reads of an event; an error event has `error` only."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One request from sending it to its end, in seconds of `time.perf_counter`.

    `pieces` are the time and the characters of each event with text. `detail` says how a request
    that was not completed ended; only a completed one has `usage`, which is the server's count.
    """

    outcome: Outcome
    start: float
    end: float
    detail: str = ""
    pieces: tuple[tuple[float, int], ...] = ()
    usage: Usage | None = None

    @property
    def tokens(self) -> int:
        return 0 if self.usage is None else self.usage.completion_tokens


@dataclass(slots=True)
class Reading:
    """A stream so far. The first thing that is wrong with it stays in `complaint`."""

    pieces: list[tuple[float, int]] = field(default_factory=list)
    usage: Usage | None = None
    is_done: bool = False
    complaint: str = ""
    _rest: bytes = b""

    def push(self, data: bytes, now: float) -> None:
        """Take what came from the socket; events may be cut anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):  # others are comments and empty lines
                self._take(line.removeprefix(b"data:").strip(), now)

    def _take(self, event: bytes, now: float) -> None:
        if event == b"[DONE]":
            self.is_done = True
            return
        try:
            chunk = msgspec.json.decode(event, type=Chunk)
        except msgspec.MsgspecError:
            self.complaint = self.complaint or "an event that is no chunk"
            return
        if chunk.error is not None:
            self.complaint = self.complaint or f"error event {name_of(chunk.error)}"
        characters = sum(len(choice.delta.content or "") for choice in chunk.choices)
        if characters:
            self.pieces.append((now, characters))
        self.usage = chunk.usage or self.usage

    def verdict(self) -> str:
        """What is wrong with the stream now that it has ended; empty if nothing is."""
        if self.complaint:
            return self.complaint
        if not self.is_done:
            return "ended without [DONE]"
        return "" if self.usage is not None else "no usage"


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """Send one request and read its answer. Whatever goes wrong is told in the answer."""
    start = time.perf_counter()
    reading = Reading()
    outcome: Outcome = "failed"
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code == 200:
                async for data in response.aiter_bytes():
                    reading.push(data, time.perf_counter())
                detail = reading.verdict()
                outcome = "failed" if detail else "completed"
            else:
                detail = refusal_of(response.status_code, await response.aread())
                outcome = "refused" if response.status_code in REFUSALS else "failed"
    except httpx.HTTPError as error:  # no connection, or lost in mid-stream, or silent too long
        detail = type(error).__name__
    usage = reading.usage if outcome == "completed" else None
    return Answer(outcome, start, time.perf_counter(), detail, tuple(reading.pieces), usage)


def refusal_of(status: int, content: bytes) -> str:
    """The status, and the error's code where the body has one."""
    try:
        error = msgspec.json.decode(content, type=Chunk).error
    except msgspec.MsgspecError:
        error = None
    return f"status {status}" if error is None else f"status {status} {name_of(error)}"


def name_of(error: dict[str, Any]) -> str:
    """OpenAI's error object in a word."""
    return str(error.get("code") or error.get("type") or "without a code")
