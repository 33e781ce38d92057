"""A running server as its users see it, over HTTP with streaming chat completions.

    python -m benchmarks.serving --url http://127.0.0.1:8000 --levels 1,4,16 \\
        --overload 3,10 --seconds 60 --pid PID

First closed loops, `level` requests at a time; then open loops at `--rate` requests a second, or at
multiples (`--overload`) of what the best closed loop completed. `of peak` is an open loop's
throughput of completed answers over the best closed loop's: name a level that fills the server.

benchmarks.transport measures HTTP's share. A table goes to stdout, and as its last line one
JSON document; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import httpx
import msgspec

from .clocks import Clocks, compared, in_words, read_metrics
from .command import refuse
from .load import Load, add_arguments, load_from
from .machine import processor_name, resident_mb
from .output import json_line, new_table, show_table
from .prompts import read_rows
from .settings import BenchmarkError
from .traffic import Bodies, Figures, Spread, closed_loop, figures, open_loop

MAX_DELAY_MS = 20.0  # of this client; beyond it a reader must know
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 120.0  # between two reads of a stream
KEEP_SECONDS = 2.0  # an idle connection; servers close theirs after five or more


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One loop: `level` of a closed one, `rate` of an open one, and its figures.

    The memory is that of the server's processes; `of_peak` is the share of the best closed loop's
    tokens per second; `clocks` are known where every request was completed.
    """

    level: int | None = None
    rate: float | None = None
    figures: Figures
    of_peak: float | None = None
    clocks: Clocks | None = None
    memory_before_mb: float | None = None
    memory_after_mb: float | None = None

    @property
    def name(self) -> str:
        return f"closed {self.level}" if self.rate is None else f"open {self.rate:.3g}/s"


async def measure(load: Load) -> tuple[str, list[Phase]]:
    """The served model's name, and all phases in order. Raises `BenchmarkError`."""
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    # Without limits of its own, and past any proxy: what waits must wait at the server.
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_SECONDS
    )
    async with httpx.AsyncClient(
        base_url=load.url, timeout=timeout, limits=limits, trust_env=False
    ) as http:
        model = await served_model(http, load.url)
        bodies = bodies_for(model, load)
        await warm_up(http, bodies, load.warm_up)
        phases = [await closed_phase(http, bodies, level, load) for level in load.levels]
        peak = max((phase.figures for phase in phases), key=lambda one: one.tokens_per_second)
        if not peak.tokens_per_second:
            raise BenchmarkError(f"no request was completed: {peak.failures or 'all refused'}")
        rates = [*load.rates, *(times * peak.requests_per_second for times in load.overloads)]
        phases += [await open_phase(http, bodies, rate, load, peak) for rate in rates]
    return model, phases


async def served_model(http: httpx.AsyncClient, url: str) -> str:
    """The name that requests must give. Raises `BenchmarkError`."""
    try:
        answer = await http.get("/v1/models")
        answer.raise_for_status()
        name = answer.json()["data"][0]["id"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise BenchmarkError(f"{url} lists no model to talk to: {error!r}") from error
    return str(name)


def bodies_for(model: str, load: Load) -> Bodies:
    """One request body a prompt."""
    rows = [row for file in load.prompts for row in read_rows(file, load.limit)]
    if not rows:
        raise BenchmarkError("--prompts: the files are empty")
    return [
        {
            "model": model,
            "messages": messages,
            "max_tokens": load.max_tokens,
            "temperature": load.temperature,
            "seed": load.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for _, messages in rows
    ]


async def warm_up(http: httpx.AsyncClient, bodies: Bodies, count: int) -> None:
    """Send some requests and forget the times. Raises `BenchmarkError` if none is completed."""
    if count:
        found = figures(await closed_loop(http, bodies, 1, count))
        if not found.completed:
            raise BenchmarkError(f"no request was completed: {found.failures or 'all refused'}")


async def closed_phase(http: httpx.AsyncClient, bodies: Bodies, level: int, load: Load) -> Phase:
    print(f"closed loop, {level} at a time", file=sys.stderr)
    count = load.count(level, len(bodies))
    before, metrics = memory(load.pid), await read_metrics(http)
    run = await closed_loop(http, bodies, level, count)
    return Phase(
        level=level,
        figures=figures(run),
        clocks=compared(metrics, await read_metrics(http), run.answers),
        memory_before_mb=before,
        memory_after_mb=memory(load.pid),
    )


async def open_phase(
    http: httpx.AsyncClient, bodies: Bodies, rate: float, load: Load, peak: Figures
) -> Phase:
    print(f"open loop, {rate:.3g} requests a second", file=sys.stderr)
    before, metrics = memory(load.pid), await read_metrics(http)
    run = await open_loop(http, bodies, rate, load.seconds, load.seed)
    found = figures(run)
    return Phase(
        rate=rate,
        figures=found,
        clocks=compared(metrics, await read_metrics(http), run.answers),
        of_peak=found.tokens_per_second / peak.tokens_per_second,
        memory_before_mb=before,
        memory_after_mb=memory(load.pid),
    )


def memory(pid: int | None) -> float | None:
    return None if pid is None else resident_mb(pid)


def notes(phases: Sequence[Phase]) -> list[str]:
    """What a reader must know beside the figures: slowness of this client, failures, clocks."""
    said = []
    for phase in phases:
        delay, failures = phase.figures.client_delay_ms, phase.figures.failures
        if delay is not None and delay.max > MAX_DELAY_MS:
            said.append(
                f"{phase.name}: this client itself was up to {delay.max:.0f} ms late "
                f"(p99 {delay.p99:.1f} ms); its times are too long by as much"
            )
        said += [f"{phase.name}: {count} failed: {why}" for why, count in failures.items()]
        if phase.clocks is not None:
            said.append(f"{phase.name}: {in_words(phase.clocks)}")
    return said


_HEADINGS = (
    *("requests", "completed", "refused", "failed", "tok/s", "of peak"),
    *("first ms", "gap ms", "refusal ms", "client ms", "memory MB"),
)
_LEGEND = (
    "tok/s of completed answers; p50/p99 of: first text, gaps between events, time to a refusal, "
    "delay of this client;\nmemory of the server before > after"
)


def _cells(phase: Phase) -> list[str]:
    own = phase.figures
    before, after = phase.memory_before_mb, phase.memory_after_mb
    return [
        *(str(own.requests), str(own.completed), str(own.refused), str(own.failed)),
        f"{own.tokens_per_second:.1f}",
        "-" if phase.of_peak is None else f"{phase.of_peak:.1%}",
        *map(_spread, (own.first_token_ms, own.gap_ms, own.refusal_ms, own.client_delay_ms)),
        "-" if before is None or after is None else f"{before:.0f} > {after:.0f}",
    ]


def _spread(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.p50:.1f}/{spread.p99:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    add_arguments(parser)
    args = parser.parse_args(argv)
    client = {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }
    try:
        load = load_from(args)
        model, phases = asyncio.run(measure(load))
    except BenchmarkError as error:
        return refuse("serving", error)
    table = new_table(("load",), _HEADINGS, _LEGEND)
    for phase in phases:
        table.add_row(phase.name, *_cells(phase))
    said = notes(phases)
    headline = f"{model} at {load.url}, asked from {client['cpu']}, {client['date']}"
    show_table(headline, table, said)
    settings = asdict(load) | {"model": model}
    document = {"client": client, "settings": settings, "phases": phases, "notes": said}
    print(json_line(document), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
