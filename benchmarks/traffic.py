"""Traffic for a running server, and the figures of what came back.

Closed: `level` clients, each sends its next request when its last one has ended. Open: requests
come at random (Poisson) at a given rate, whether or not the server keeps up.

Speeds are tokens of completed answers, over the time in which the traffic was whole: until the
first client finds nothing to send, or until the last arrival is due. An answer that goes on after
that counts with the share of its text that came before.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any

import httpx
import msgspec
import numpy as np

from .chat_client import Answer, ask

TICK_SECONDS = 0.005  # between two looks at how late our own event loop is
Bodies = Sequence[dict[str, Any]]


@dataclass(slots=True)
class Run:
    """Answers, the time that counts for speeds, and how many seconds late the client itself was."""

    start: float = 0.0
    end: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    p50: float
    p99: float
    max: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. A spread is None where there was nothing of the kind.

    `first_token` is from sending to the first text and `gap` between events with text, both of
    completed answers; `refusal` is how long a refused request took; `client_delay` is how late this
    process's own event loop was, by which its times are too long. `failures` counts by what went
    wrong; `cached` is the share of prompt tokens that the server had in its cache.
    """

    seconds: float
    requests: int
    completed: int
    refused: int
    failed: int
    failures: dict[str, int]
    tokens_per_second: float
    requests_per_second: float
    first_token_ms: Spread | None
    gap_ms: Spread | None
    refusal_ms: Spread | None
    client_delay_ms: Spread | None
    cached: float | None


async def closed_loop(http: httpx.AsyncClient, bodies: Bodies, level: int, count: int) -> Run:
    """Send `count` requests, the bodies in turn, `level` of them at a time."""
    run, numbers = Run(), iter(range(count))  # the clients share them: who is free takes the next
    ends: list[float] = []

    async def client() -> None:
        for number in numbers:
            run.answers.append(await ask(http, bodies[number % len(bodies)]))
        ends.append(time.perf_counter())

    async with watched(run.delays), asyncio.TaskGroup() as group:
        run.start = time.perf_counter()
        for _ in range(level):
            group.create_task(client())
    run.end = min(ends)
    return run


async def open_loop(
    http: httpx.AsyncClient, bodies: Bodies, rate: float, seconds: float, seed: int
) -> Run:
    """Send requests as they are due, for so many seconds, and read all answers to their ends."""
    run = Run()

    async def client(body: dict[str, Any]) -> None:
        run.answers.append(await ask(http, body))

    async with watched(run.delays), asyncio.TaskGroup() as group:
        run.start = time.perf_counter()
        run.end = run.start + seconds
        for number, at in enumerate(arrivals(rate, seconds, seed)):
            due = run.start + at
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            run.delays.append(time.perf_counter() - due)
            group.create_task(client(bodies[number % len(bodies)]))
    return run


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds at which requests are due, `rate` of them a second on average."""
    dice = random.Random(seed)
    at = dice.expovariate(rate)
    while at < seconds:
        yield at
        at += dice.expovariate(rate)


@asynccontextmanager
async def watched(delays: list[float]) -> AsyncIterator[None]:
    """Note all the while how much later than asked the event loop wakes up."""

    async def watch() -> None:
        while True:
            due = time.perf_counter() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            delays.append(time.perf_counter() - due)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def figures(run: Run) -> Figures:
    """The figures of one run."""
    by_outcome = {
        outcome: [one for one in run.answers if one.outcome == outcome]
        for outcome in ("completed", "refused", "failed")
    }
    completed, refused, failed = by_outcome.values()
    seconds = run.end - run.start
    speed = sum(tokens_between(one, run.start, run.end) for one in completed) / seconds
    tokens = fmean(one.tokens for one in completed) if completed else 0.0
    gaps = [then[0] - now[0] for one in completed for now, then in pairwise(one.pieces)]
    return Figures(
        seconds=seconds,
        requests=len(run.answers),
        completed=len(completed),
        refused=len(refused),
        failed=len(failed),
        failures=dict(Counter(one.detail for one in failed)),
        tokens_per_second=speed,
        requests_per_second=speed / tokens if tokens else 0.0,
        first_token_ms=spread([one.pieces[0][0] - one.start for one in completed if one.pieces]),
        gap_ms=spread(gaps),
        refusal_ms=spread([one.end - one.start for one in refused]),
        client_delay_ms=spread(run.delays),
        cached=share_cached(completed),
    )


def tokens_between(answer: Answer, start: float, end: float) -> float:
    """An answer's tokens that came in that time, by the share of its characters that did."""
    if not answer.pieces:
        return answer.tokens if start <= answer.end <= end else 0.0
    inside = sum(characters for at, characters in answer.pieces if start <= at <= end)
    return answer.tokens * inside / sum(characters for _, characters in answer.pieces)


def share_cached(answers: Sequence[Answer]) -> float | None:
    """Cached over all prompt tokens; None where the server does not tell."""
    usages = [one.usage for one in answers if one.usage is not None]
    cached = [u.prompt_tokens_details.cached_tokens for u in usages if u.prompt_tokens_details]
    prompt = sum(usage.prompt_tokens for usage in usages)
    return sum(count or 0 for count in cached) / prompt if cached and prompt else None


def spread(seconds: Sequence[float]) -> Spread | None:
    """Percentiles in milliseconds; None of nothing."""
    if not seconds:
        return None
    p50, p99 = np.percentile(seconds, [50, 99])
    return Spread(p50=1e3 * float(p50), p99=1e3 * float(p99), max=1e3 * max(seconds))
