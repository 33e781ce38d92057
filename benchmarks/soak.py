"""A server under mixed load for a long time: what it holds must not grow.

    python -m benchmarks.soak --minutes 20            with a server of its own, over the demo pair
    python -m benchmarks.soak --url http://127.0.0.1:8000 --pid PID

First the mixture is sent in a closed loop, to learn how many requests a second the server manages;
then at `--share` of that, at random moments. Some clients leave in the middle, some requests are
broken. When all is over the server must hold no more files, tasks or threads than before, every
slot must be free, and its memory must not have grown since the warm-up: the slope's whole interval
may not lie above `--most-mb-per-hour`. A table goes to stdout, and as its last line one JSON
document; the status is 1 where a bound was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import httpx
import msgspec

from .command import OWN_PROMPTS, refuse
from .load import is_url
from .machine import processor_name
from .mixture import Material, Request, material, requests, verdict
from .output import json_line, new_table, show_table
from .own_server import own_server
from .prompts import read_rows
from .readings import Reading, are_free, complaints, read, read_idle, slots_of
from .settings import BenchmarkError
from .traffic import arrivals
from .vitals import ROLES, Growth, growth, holdings

SILENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Soak:
    """How long, and how hard. `warm_up` is the share of the time before memory must stand still."""

    url: str
    pid: int
    minutes: float
    every: float
    calibrate: float
    clients: int
    share: float
    warm_up: float
    max_tokens: int
    most_mb_per_hour: float
    seed: int

    def __post_init__(self) -> None:
        times = (self.minutes, self.every, self.calibrate, self.share)
        counts = (self.clients, self.max_tokens)
        late = 60 * self.minutes * (1 - self.warm_up)
        claims = {
            f"--url {self.url!r} must begin with http:// or https://": is_url(self.url),
            f"--pid {self.pid}: there is no such process": bool(holdings(self.pid)),
            "--minutes, --every, --calibrate and --share must be above 0": min(times) > 0,
            "--clients and --max-tokens must be at least 1": min(counts) >= 1,
            f"--warm-up {self.warm_up} must be from 0 to below 1": 0 <= self.warm_up < 1,
            "four readings must come behind the warm-up: raise --minutes or lower --every": late
            >= 4 * self.every,
        }
        for complaint, holds in claims.items():
            if not holds:
                raise BenchmarkError(complaint)


@dataclass(slots=True)
class Tally:
    """What came of the requests so far; `failures` counts by what was wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    async def send(self, http: httpx.AsyncClient, request: Request) -> None:
        """Send one request and read its answer, unless its client leaves before the end."""
        try:
            async with asyncio.timeout(request.patience):
                found = verdict(request, await http.post(request.path, json=request.body))
        except TimeoutError:
            found = "left"
        except httpx.HTTPError as error:
            found = f"{request.kind}: {type(error).__name__}"
        known = found in ("completed", "refused", "left")
        self.outcomes[found if known else "failed"] += 1
        if not known:
            self.failures[found] += 1


class Result(msgspec.Struct, kw_only=True):
    """All readings in order, memory's growth in the second of them on, and what was broken."""

    model: str
    capacity: float
    readings: list[Reading]
    growth: Growth | None
    broken: list[str]


def clients(url: str) -> httpx.AsyncClient:
    """Without limits of its own, and past any proxy: what waits must wait at the server."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=SILENCE_SECONDS, limits=limits, trust_env=False)


async def measure(soak: Soak, texts: Sequence[str]) -> Result:
    """Calibrate, load, look. Raises `BenchmarkError`."""
    async with clients(soak.url) as http:
        of = await material(http, texts, soak.max_tokens)
        capacity = await calibrated(http, of, soak)
    print(f"{capacity:.1f} requests/s at most", file=sys.stderr)
    async with clients(soak.url) as http:
        readings = [await read_idle(http, soak.pid, 0.0)]
    tally, start = Tally(), time.perf_counter()
    async with clients(soak.url) as http:
        await loaded(http, of, soak, capacity * soak.share, tally, readings)
    async with clients(soak.url) as http:
        after = await read_idle(http, soak.pid, time.perf_counter() - start, readings[0])
        after = msgspec.structs.replace(after, outcomes=dict(tally.outcomes))
        limit = of.context_length - soak.max_tokens
        has_slots = await are_free(http, of.model, await slots_of(http), limit)
    found = memory_growth(readings, soak)
    return Result(
        model=of.model,
        capacity=capacity,
        readings=[*readings, after],
        growth=found,
        broken=[
            *(f"{count} failed: {why}" for why, count in tally.failures.items()),
            *complaints(readings[0], after),
            *([] if has_slots else ["not every slot is free"]),
            *growth_complaints(found, soak),
        ],
    )


async def calibrated(http: httpx.AsyncClient, of: Material, soak: Soak) -> float:
    """Requests a second that so many clients get through, one after another each."""
    tally, source = Tally(), requests(of, soak.seed)
    start = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < start + soak.calibrate:
            await tally.send(http, next(source))

    await asyncio.gather(*(client() for _ in range(soak.clients)))
    if tally.failures:
        raise BenchmarkError(f"the mixture is not answered: {dict(tally.failures)}")
    return tally.outcomes.total() / (time.perf_counter() - start)


async def loaded(
    http: httpx.AsyncClient,
    of: Material,
    soak: Soak,
    rate: float,
    tally: Tally,
    readings: list[Reading],
) -> None:
    """Send requests at random moments, `rate` a second, and all the while look at the server."""
    start, source = time.perf_counter(), requests(of, soak.seed + 1)

    async def look() -> None:
        while True:
            await asyncio.sleep(soak.every)
            seconds = time.perf_counter() - start
            readings.append(await read(http, soak.pid, seconds, tally.outcomes))
            print(cells(readings[-1]), file=sys.stderr)

    looking = asyncio.create_task(look())
    try:
        async with asyncio.TaskGroup() as group:
            for at in arrivals(rate, 60 * soak.minutes, soak.seed):
                await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
                group.create_task(tally.send(http, next(source)))
        if looking.done():
            await looking  # it never ends by itself: this raises what ended it
    finally:
        looking.cancel()


def memory_growth(readings: Sequence[Reading], soak: Soak) -> Growth | None:
    """Of all processes together, since the warm-up and while the load lasted."""
    since = 60 * soak.minutes * soak.warm_up
    late = [own for own in readings if own.seconds and own.seconds >= since]
    return growth([own.seconds / 3600 for own in late], [own.memory_mb for own in late])


def growth_complaints(found: Growth | None, soak: Soak) -> list[str]:
    """Broken is the bound where even the low end of the slope's interval lies above it."""
    if found is None or found.low <= soak.most_mb_per_hour:
        return []
    return [f"memory grows by {found.slope:.1f} MB/h, at least by {found.low:.1f}"]


_HEADINGS = ("http MB", "engine MB", "template MB", "threads", "files", "tasks", "runs", "waits")
_OUTCOMES = ("completed", "refused", "left", "failed")
_LEGEND = (
    "memory that is no mapped file's; threads and open files of all processes; tasks of the HTTP "
    "process; left: the client did"
)


def cells(own: Reading) -> list[str]:
    """A row of the table."""
    held = own.processes
    memory = [f"{held[role].memory_mb:.1f}" if role in held else "-" for role in ROLES]
    return [
        *(f"{own.seconds / 60:.1f}", *memory),
        str(sum(one.threads for one in held.values())),
        str(sum(one.files for one in held.values())),
        *("-" if own.tasks is None else str(own.tasks), str(own.running), str(own.waiting)),
        *(str(own.outcomes.get(name, 0)) for name in _OUTCOMES),
    ]


def show(result: Result, soak: Soak) -> None:
    table = new_table(("minute",), (*_HEADINGS, *_OUTCOMES), _LEGEND)
    for own in result.readings:
        table.add_row(*cells(own))
    said = [f"BROKEN: {complaint}" for complaint in result.broken]
    if (found := result.growth) is not None:
        said.append(
            f"memory since the warm-up: {found.slope:+.1f} MB/h, 95 % from {found.low:+.1f} to "
            f"{found.high:+.1f}, by readings as if each stood for itself"
        )
    rate = result.capacity * soak.share
    headline = f"{result.model} at {soak.url}: {rate:.1f} requests/s of {result.capacity:.1f}"
    show_table(f"{headline}, seed {soak.seed}, asked from {processor_name()}", table, said)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", help="of a running server (default: start one)")
    add("--pid", type=int, metavar="PID", help="its process (Linux); needed with --url")
    add("--minutes", type=float, default=20.0, metavar="M", help="(default: %(default)s)")
    add("--every", type=float, default=60.0, metavar="S", help="seconds between two readings")
    add("--calibrate", type=float, default=60.0, metavar="S", help="seconds of the closed loop")
    add("--clients", type=int, default=8, metavar="N", help="of the closed loop (default: 8)")
    add("--share", type=float, default=0.8, metavar="X", help="of what it managed (default: 0.8)")
    add("--warm-up", type=float, default=0.5, metavar="X", help="share of the time (default: half)")
    add("--max-tokens", type=int, default=64, metavar="N", help="of an answer (default: 64)")
    add("--most-mb-per-hour", type=float, default=1.0, metavar="MB", help="(default: 1)")
    add("--seed", type=int, default=0, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Raises `BenchmarkError`."""
    soak = Soak(**vars(args) | {"url": args.url.removesuffix("/v1")})
    texts = [messages[-1]["content"] for _, messages in read_rows(OWN_PROMPTS)]
    result = asyncio.run(measure(soak, texts))
    show(result, soak)
    print(json_line({"settings": asdict(soak), "soak": result}), flush=True)
    return 1 if result.broken else 0


def main(argv: Sequence[str] | None = None) -> int:
    """1 where a bound was broken; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        if (args.url is None) != (args.pid is None):
            raise BenchmarkError("--url and --pid belong together")
        if args.url is not None:
            return run(args)
        with own_server("--threads", "1") as (args.url, args.pid):
            return run(args)
    except BenchmarkError as error:
        return refuse("soak", error)


if __name__ == "__main__":
    sys.exit(main())
