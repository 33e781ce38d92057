"""How long running answers stand still when a long prompt arrives.

    python -m benchmarks.stall --streams 8 --fill 0.9

Some answers run; then comes a prompt that fills most of the context. It is prefilled in chunks
between decoding steps, so no answer should wait longer than one chunk and one step. In the engine,
without HTTP. A table goes to stdout, and as its last line one JSON document.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from itertools import chain, cycle, islice
from statistics import median
from typing import Any

import msgspec

from engine.engine import Engine
from engine.messages import SamplingParams, StepReport, Submit

from .command import NO_PROTOCOL, add_model_arguments, refuse
from .loading import engine_config, load_checked, prepare
from .machine import Machine, describe_machine
from .output import json_line, new_table, show_table
from .protocol import garbage_collection_off
from .settings import BenchmarkError, settings_from

LONG = "long"
SETTLING_STEPS = 20
QUIET_STEPS = 60


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds between two outputs of every running answer, before and during the prompt.

    `chunk` is the longest prefill of one step, `step` the longest of the rest of a step meanwhile,
    `first_token` the long request's own wait.
    """

    streams: int
    prompt_tokens: int
    quiet: float
    quiet_worst: float
    during: float
    worst: float
    chunk: float
    step: float
    first_token: float


def measure(engine: Engine, prompts: Sequence[Sequence[int]], streams: int, fill: float) -> Stall:
    """Run the answers, then the prompt. The engine must have a slot more than `streams`."""
    context = engine.target.context_length
    sampling = SamplingParams(temperature=0.0)
    for number, ids in enumerate(islice(cycle(prompts), streams)):
        engine.submit(Submit(str(number), list(ids), context - len(ids), sampling, []))
    for _ in range(SETTLING_STEPS):
        engine.step()
    quiet = [timed_step(engine)[0] for _ in range(QUIET_STEPS)]
    tokens = list(islice(cycle(chain.from_iterable(prompts)), int(fill * context)))
    engine.submit(Submit(LONG, tokens, 1, sampling, []))
    steps: list[tuple[float, StepReport]] = []
    while not steps or all(output.request_id != LONG for output in steps[-1][1].outputs):
        steps.append(timed_step(engine))
        if len(steps[-1][1].outputs) < streams:
            raise BenchmarkError("an answer has come to the end of the context: use short prompts")
    gaps = [gap for gap, _ in steps]
    return Stall(
        streams=streams,
        prompt_tokens=len(tokens),
        quiet=median(quiet),
        quiet_worst=max(quiet),
        during=median(gaps),
        worst=max(gaps),
        chunk=max(report.prefill_ms for _, report in steps),
        step=max(gap - report.prefill_ms for gap, report in steps),
        first_token=sum(gaps),
    )


def timed_step(engine: Engine) -> tuple[float, StepReport]:
    start = time.perf_counter()
    report = engine.step()
    return 1e3 * (time.perf_counter() - start), report


def run(args: argparse.Namespace) -> tuple[Machine, Stall]:
    """Check what was typed, then measure. Raises `BenchmarkError`."""
    if args.streams < 1:
        raise BenchmarkError(f"--streams must be at least 1, not {args.streams}")
    if not 0 < args.fill < 1:
        raise BenchmarkError(f"--fill must be between 0 and 1, not {args.fill}")
    settings = settings_from(args)
    prompts, _ = prepare(settings)
    config = msgspec.structs.replace(
        engine_config(settings, settings.drafter, 0),
        max_num_seqs=args.streams + 1,
        speculation="auto",
    )
    engine = load_checked(config)
    load = os.getloadavg()[0]
    with garbage_collection_off():
        found = measure(engine, [one.ids for one in prompts.prompts], args.streams, args.fill)
    return describe_machine(engine.target.device, engine.target.dtype, load), found


def show(machine: Machine, found: Stall) -> None:
    headings = ("streams", "prompt", "quiet ms", "worst", "during ms", "worst", "chunk", "step")
    legend = "time between two outputs of a running answer: median and worst; first: the prompt's"
    table = new_table((), (*headings, "first ms"), legend)
    table.add_row(
        *(str(found.streams), str(found.prompt_tokens)),
        *(f"{found.quiet:.1f}", f"{found.quiet_worst:.1f}"),
        *(f"{found.during:.1f}", f"{found.worst:.1f}", f"{found.chunk:.1f}", f"{found.step:.1f}"),
        f"{found.first_token:.0f}",
    )
    show_table(machine.headline, table, [])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stall")
    add_model_arguments(parser)
    parser.add_argument("--streams", type=int, default=8, metavar="N", help="(default: 8)")
    parser.add_argument("--fill", type=float, default=0.9, metavar="F", help="share of the context")
    parser.set_defaults(**NO_PROTOCOL, repeats=1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
    try:
        machine, found = run(parser.parse_args(argv))
    except BenchmarkError as error:
        return refuse("stall", error)
    show(machine, found)
    document: dict[str, Any] = {"machine": machine, "stall": found}
    print(json_line(document), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
