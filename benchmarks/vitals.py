"""What a server's processes hold, and whether it grows: memory, threads, files, tasks (Linux).

Memory is what the processes have made themselves. Pages of mapped files (weights, libraries) are
left out: the kernel drops and fetches them as it likes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist, fmean

import msgspec

# Threads of asyncio's own pool: it fills when it is first needed, and never beyond.
SPARE_THREADS = min(32, (os.cpu_count() or 1) + 4)
CONFIDENCE = 0.95
ROLES = ("http", "engine", "template")


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What one process holds; megabytes are of 2**20 bytes."""

    memory_mb: float
    threads: int
    files: int

    def plus(self, other: Holding) -> Holding:
        return Holding(
            memory_mb=self.memory_mb + other.memory_mb,
            threads=self.threads + other.threads,
            files=self.files + other.files,
        )


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """Megabytes an hour by least squares, and the ends of the slope's 95 % interval."""

    slope: float
    low: float
    high: float


def holdings(pid: int) -> dict[str, Holding]:
    """Of a server and all below it, by what they are for; none where it has ended."""
    found: dict[str, Holding] = {}
    for child in [pid, *_below(pid)]:
        try:
            role, own = "http" if child == pid else _role(child), _holding(child)
        except (OSError, KeyError):  # it has ended
            continue
        found[role] = found[role].plus(own) if role in found else own  # ranks are one engine
    return found


def _below(pid: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{pid}/task").glob("*/children")]
        children = [int(word) for file in tasks for word in file.read_text().split()]
    except OSError:
        return []
    return children + [further for child in children for further in _below(child)]


def _role(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    return "template" if b"template_worker" in words else "engine"


def _holding(pid: int) -> Holding:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    return Holding(
        memory_mb=int(status["RssAnon"].split()[0]) / 2**10,
        threads=int(status["Threads"]),
        files=len(os.listdir(f"/proc/{pid}/fd")),
    )


def growth(hours: Sequence[float], megabytes: Sequence[float]) -> Growth | None:
    """The line through the readings; None for fewer than four."""
    count = len(hours)
    if count < 4:
        return None
    middle, mean = fmean(hours), fmean(megabytes)
    spread = sum((hour - middle) ** 2 for hour in hours)
    pairs = list(zip(hours, megabytes, strict=True))
    slope = sum((hour - middle) * (own - mean) for hour, own in pairs) / spread
    rest = sum((own - mean - slope * (hour - middle)) ** 2 for hour, own in pairs)
    error = (rest / (count - 2) / spread) ** 0.5
    half = _student(count - 2) * error
    return Growth(slope=slope, low=slope - half, high=slope + half)


def _student(freedom: int) -> float:
    """Student's t for the interval's end, within 1 % from 2 degrees of freedom on: its expansion
    in powers of 1 / freedom."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def leaks(before: Mapping[str, Holding], after: Mapping[str, Holding]) -> list[str]:
    """What an idle server holds that it did not hold when it was idle before."""
    found = []
    for role, own in after.items():
        was = before.get(role)
        if was is None:
            found.append(f"a process came: {role}")
            continue
        if own.files > was.files:
            found.append(f"{role}: {own.files} open files, {was.files} before")
        if own.threads > was.threads + SPARE_THREADS:
            found.append(f"{role}: {own.threads} threads, {was.threads} before")
    return found
