"""What `benchmarks.serving` was asked to send where, checked before anything is sent."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import httpx

from .command import add_prompt_arguments, parse_numbers
from .machine import resident_mb
from .settings import BenchmarkError

ROUNDS = 4  # by default at least so many requests for each of the level


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask of which server. `requests` 0 is every prompt, and some rounds of the level."""

    url: str
    prompts: tuple[Path, ...]
    limit: int
    max_tokens: int
    temperature: float
    seed: int
    levels: tuple[int, ...]
    requests: int
    warm_up: int
    rates: tuple[float, ...]
    overloads: tuple[float, ...]
    seconds: float
    pid: int | None

    def __post_init__(self) -> None:
        most = max(self.levels)
        claims = {
            f"--url {self.url!r} must begin with http:// or https://": is_url(self.url),
            f"--max-tokens must be at least 1, not {self.max_tokens}": self.max_tokens >= 1,
            f"--limit must be at least 0, not {self.limit}": self.limit >= 0,
            f"--warm-up must be at least 0, not {self.warm_up}": self.warm_up >= 0,
            f"--requests {self.requests} must be 0 or at least {most}": self.requests == 0
            or self.requests >= most,
            f"--seconds must be above 0, not {self.seconds}": 0 < self.seconds < float("inf"),
            f"--pid {self.pid}: there is no such process": self.pid is None
            or resident_mb(self.pid) > 0,
        }
        for complaint, holds in claims.items():
            if not holds:
                raise BenchmarkError(complaint)

    def count(self, level: int, num_prompts: int) -> int:
        """Requests of a closed loop."""
        return self.requests or max(num_prompts, ROUNDS * level)


def is_url(text: str) -> bool:
    """Whether a server can be there."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in {"http", "https"} and bool(url.host)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server is, what to ask, and how much at a time."""
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    add_prompt_arguments(parser)
    add("--levels", default="1", metavar="N,N", help="closed loops (default: %(default)s)")
    add(
        "--requests",
        type=int,
        default=0,
        metavar="N",
        help=f"of each closed loop (0: every prompt, at least {ROUNDS} rounds of the level)",
    )
    add("--warm-up", type=int, default=2, metavar="N", help="requests before the clock starts")
    add("--rate", metavar="R,R", help="open loops: requests a second")
    add("--overload", metavar="X,X", help="open loops: times what the best closed loop completed")
    add("--seconds", type=float, default=30.0, metavar="S", help="of an open loop (default: 30)")
    add("--pid", type=int, metavar="PID", help="server's process: report its memory (Linux)")


def load_from(args: argparse.Namespace) -> Load:
    """Check what was typed. Raises `BenchmarkError`."""
    rates, overloads = args.rate, args.overload
    return Load(
        url=args.url,
        prompts=tuple(args.prompts),
        limit=args.limit,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        levels=parse_numbers("--levels", args.levels, int),
        requests=args.requests,
        warm_up=args.warm_up,
        rates=() if rates is None else parse_numbers("--rate", rates, float),
        overloads=() if overloads is None else parse_numbers("--overload", overloads, float),
        seconds=args.seconds,
        pid=args.pid,
    )
