"""Looking at a server from outside: what its processes hold, and what it says of itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from .clocks import read_metrics
from .settings import BenchmarkError
from .vitals import Holding, holdings, leaks

PATIENCE = 60.0  # seconds for what an idle server does at once
LOOK_SECONDS = 0.1
_TASKS = "falcon:event_loop_tasks"


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """At one moment, `seconds` from the start of the load on; `outcomes` are those so far.

    `tasks` are those of the HTTP process's event loop; other servers do not tell.
    """

    seconds: float
    processes: dict[str, Holding]
    tasks: int | None
    running: int
    waiting: int
    restarts: int
    outcomes: dict[str, int]

    @property
    def memory_mb(self) -> float:
        return sum(own.memory_mb for own in self.processes.values())


async def read(
    http: httpx.AsyncClient, pid: int, seconds: float, outcomes: Mapping[str, int]
) -> Reading:
    """Now."""
    metrics = await read_metrics(http)
    return Reading(
        seconds=seconds,
        processes=holdings(pid),
        tasks=round(metrics[_TASKS]) if _TASKS in metrics else None,
        running=round(metrics.get("vllm:num_requests_running", 0)),
        waiting=round(metrics.get("vllm:num_requests_waiting", 0)),
        restarts=round(metrics.get("falcon:engine_restarts_total", 0)),
        outcomes=dict(outcomes),
    )


async def read_idle(
    http: httpx.AsyncClient, pid: int, seconds: float, before: Reading | None = None
) -> Reading:
    """Once nothing runs or waits and, for a while, until nothing leaks that did not `before`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        now = await read(http, pid, seconds, {})
        is_idle = not now.running and not now.waiting
        if is_idle and (before is None or not complaints(before, now)):
            return now
        if time.monotonic() > deadline:
            return now
        await asyncio.sleep(LOOK_SECONDS)


def complaints(before: Reading, after: Reading) -> list[str]:
    """What two readings of an idle server differ in that they must not."""
    found = leaks(before.processes, after.processes)
    if after.running or after.waiting:
        found.append(f"{after.running} requests run and {after.waiting} wait that nobody sent")
    if after.tasks is not None and before.tasks is not None and after.tasks > before.tasks:
        found.append(f"{after.tasks} tasks of the event loop, {before.tasks} before")
    if after.restarts > before.restarts:
        found.append(f"the engine was restarted {after.restarts - before.restarts} times")
    return found


async def slots_of(http: httpx.AsyncClient) -> int:
    """How many requests can run at once. Raises `BenchmarkError` where the server does not say."""
    text = (await http.get("/metrics")).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "vllm:cache_config_info":
                return int(sample.labels["num_gpu_blocks"])
    raise BenchmarkError("the server does not say how many slots it has")


async def are_free(http: httpx.AsyncClient, model: str, slots: int, max_tokens: int) -> bool:
    """Whether as many requests as there are slots begin to answer before the first of them ends."""
    body = {"model": model, "prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True}
    begun: set[int] = set()
    all_begun = asyncio.Event()

    async def run(number: int) -> None:
        async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    begun.add(number)
                if len(begun) == slots:
                    all_begun.set()

    tasks = [asyncio.create_task(run(number)) for number in range(slots)]
    tasks.append(asyncio.create_task(all_begun.wait()))  # type: ignore[arg-type]  # a bool
    await asyncio.wait(tasks, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return all_begun.is_set()
