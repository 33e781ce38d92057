"""Several requests at once on one engine: a closed loop, and the figures of what it saw.

    level 2, four requests    a ────────┐ d ───────────┐
                              b ──┐ c ─────────┐       │
                              |<── speeds ────>|       │
                              |<── answers ───────────>|

Speeds are those of the time in which `level` requests were there; answers are compared to the end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import msgspec

from engine.engine import Engine
from engine.messages import StepReport, Submit

from .settings import BenchmarkError


@dataclass(frozen=True, slots=True)
class Recording:
    """A closed loop as it was seen: when each request was submitted, when each step had ended."""

    level: int
    submitted: Mapping[str, float]
    steps: Sequence[tuple[float, StepReport]]

    def answers(self) -> dict[str, list[int]]:
        """Token ids by request."""
        found: dict[str, list[int]] = {}
        for _, report in self.steps:
            for output in report.outputs:
                found.setdefault(output.request_id, []).extend(output.token_ids)
        return found


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine did at one level.

    `nodes` are drafted and `tau` tokens given per request and step, the bonus token counted in
    `tau` only; `first_token_ms` is from submission, a mean; `cached` is the share of prompt tokens
    that an earlier request of the same loop had left in the cache.
    """

    tokens_per_second: float
    nodes: float
    tau: float
    step_ms: float
    first_token_ms: float
    cached: float


class LevelResult(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the repeats, by engine; `speeds` has every repeat's tokens per second.

    `ratio` is that of the median speeds, `differing` the share of answers whose token ids are not
    the same with "auto" as with "off".
    """

    level: int
    requests: int
    engines: dict[str, Figures]
    speeds: dict[str, list[float]]
    ratio: float
    differing: float


def closed_loop(engine: Engine, requests: Iterable[Submit], level: int) -> Recording:
    """Answer all requests, `level` of them at a time, from an empty cache."""
    engine.scheduler.forget()
    waiting, under_way = deque(requests), 0
    submitted: dict[str, float] = {}
    steps: list[tuple[float, StepReport]] = []
    while waiting or under_way:
        while waiting and under_way < level:
            request = waiting.popleft()
            submitted[request.request_id] = time.perf_counter()
            engine.submit(request)
            under_way += 1
        report = engine.step()
        steps.append((time.perf_counter(), report))
        under_way -= num_ended(report)
    return Recording(level, submitted, steps)


def num_ended(report: StepReport) -> int:
    """How many requests ended in this step. Raises `BenchmarkError` if one of them failed."""
    if any(output.finish_reason == "error" for output in report.outputs):
        raise BenchmarkError("the engine failed on a request; its log says why")
    return sum(output.finish_reason is not None for output in report.outputs)


def full_steps(recording: Recording) -> list[tuple[float, StepReport]]:
    """The steps until fewer than `level` requests are left."""
    left, full = len(recording.submitted), []
    for step in recording.steps:
        if left < recording.level:
            break
        full.append(step)
        left -= num_ended(step[1])
    return full


def figures(recording: Recording) -> Figures:
    """The figures of one closed loop."""
    full = full_steps(recording)
    seconds = full[-1][0] - min(recording.submitted.values())
    outputs = [output for _, report in full for output in report.outputs]
    tokens = sum(len(output.token_ids) for output in outputs)
    firsts: dict[str, float] = {}
    for end, report in recording.steps:
        for output in report.outputs:
            firsts.setdefault(output.request_id, end - recording.submitted[output.request_id])
    cached = sum(report.cached_tokens for _, report in recording.steps)
    computed = sum(report.computed_tokens for _, report in recording.steps)
    return Figures(
        tokens_per_second=tokens / seconds,
        nodes=fmean(output.drafted for output in outputs),
        tau=tokens / len(outputs),
        step_ms=1e3 * seconds / len(full),
        first_token_ms=1e3 * fmean(firsts.values()),
        cached=cached / (cached + computed),
    )


def level_result(recordings: Mapping[str, Sequence[Recording]]) -> LevelResult:
    """Sum up one level: each engine's recordings, one a repeat."""
    runs = {name: [figures(one) for one in own] for name, own in recordings.items()}
    fields = Figures.__struct_fields__
    middle = {
        name: Figures(**{f: median(getattr(run, f) for run in own) for f in fields})
        for name, own in runs.items()
    }
    pairs = zip(recordings["auto"], recordings["off"], strict=True)
    return LevelResult(
        level=recordings["auto"][0].level,
        requests=len(recordings["auto"][0].submitted),
        engines=middle,
        speeds={name: [run.tokens_per_second for run in own] for name, own in runs.items()},
        ratio=middle["auto"].tokens_per_second / middle["off"].tokens_per_second,
        differing=fmean(share_differing(auto.answers(), off.answers()) for auto, off in pairs),
    )


def share_differing(some: Mapping[str, list[int]], others: Mapping[str, list[int]]) -> float:
    """The share of requests whose answers are not the same."""
    return fmean(answer != others[request] for request, answer in some.items())
