"""Throughput of the engine with several requests at once: speculation "auto" against "off".

    python -m benchmarks.concurrency --prompts FILE --levels 1,2,4,8,16 --plot levels.png

A closed loop keeps `level` requests submitted: as one ends, the next one comes. The two engines
take turns in every repeat. What "auto" has learnt about its drafts it keeps, as a server does.

A table goes to stdout, and as its last line one JSON document; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from engine.config import Speculation
from engine.engine import Engine
from engine.messages import Submit

from .command import add_model_arguments, add_protocol_arguments, parse_numbers, refuse
from .comparison import notes, settings_document
from .loading import engine_config, load_checked, prepare
from .machine import Machine, describe_machine
from .methods import EngineMethod, Task
from .output import json_line, new_table, show_table
from .picture import plot_levels
from .prompts import PromptSet
from .protocol import garbage_collection_off
from .settings import BenchmarkError, Settings, choose_pair, settings_from
from .throughput import LevelResult, Recording, closed_loop, level_result

ENGINES: tuple[Speculation, ...] = ("auto", "off")
ROUNDS = 4  # by default at least so many requests for each of the level
CACHED_SHARE = 0.25  # of the prompt tokens; beyond it, prefill is not what it is for new prompts


@dataclass(frozen=True, slots=True)
class Loop:
    """How the levels are measured. `requests` 0 is every prompt, and some rounds of the level."""

    levels: tuple[int, ...]
    requests: int
    max_num_seqs: int
    deterministic: bool

    def __post_init__(self) -> None:
        most = max(self.levels)
        if most > self.max_num_seqs:
            raise BenchmarkError(f"--levels {most} is more than --max-num-seqs {self.max_num_seqs}")
        if self.requests and self.requests < most:
            raise BenchmarkError(f"--requests {self.requests} must be 0 or at least {most}")

    def count(self, level: int, num_prompts: int) -> int:
        return self.requests or max(num_prompts, ROUNDS * level)


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that a run has to say."""

    machine: Machine
    settings: dict[str, Any]
    levels: list[LevelResult]
    notes: list[str]


def measure(settings: Settings, loop: Loop) -> Result:
    """Load both engines and run every level. Raises `BenchmarkError`."""
    load_average = os.getloadavg()[0]
    prompts, task = prepare(settings)
    engines = load_engines(settings, loop, prompts.longest + settings.max_tokens)
    levels = []
    for level in loop.levels:
        submits = requests(prompts, task, loop.count(level, len(prompts.prompts)))
        levels.append(level_result(recordings(engines, submits, level, settings)))
    target = engines["auto"].target
    described = settings_document(settings, [EngineMethod("falcon", engines["auto"], task)])
    return Result(
        machine=describe_machine(target.device, target.dtype, load_average),
        settings=described | asdict(loop) | {"methods": list(ENGINES)},
        levels=levels,
        notes=notes(settings, [], prompts) + own_notes(levels, loop),
    )


def load_engines(settings: Settings, loop: Loop, context_length: int) -> dict[str, Engine]:
    """Both engines, each with its own copy of the target."""
    config = msgspec.structs.replace(
        engine_config(settings, settings.drafter, context_length),
        max_num_seqs=loop.max_num_seqs,
        deterministic=loop.deterministic,
    )
    configs = {name: msgspec.structs.replace(config, speculation=name) for name in ENGINES}
    return {name: load_checked(one) for name, one in configs.items()}


def requests(prompts: PromptSet, task: Task, count: int) -> list[Submit]:
    """So many requests, the prompts in turn."""
    ids = [prompts.prompts[number % len(prompts.prompts)].ids for number in range(count)]
    stops = list(task.stop_token_ids)
    return [
        Submit(str(number), prompt, task.max_tokens, task.sampling, stops)
        for number, prompt in enumerate(ids)
    ]


def recordings(
    engines: Mapping[str, Engine], submits: Sequence[Submit], level: int, settings: Settings
) -> dict[str, list[Recording]]:
    """One recording an engine and repeat, after a warm-up; another engine is first each time."""
    for engine in engines.values():
        closed_loop(engine, submits[: settings.warm_up], level)
    found: dict[str, list[Recording]] = {name: [] for name in engines}
    for repeat in range(settings.repeats):
        for name in list(engines)[:: 1 if repeat % 2 == 0 else -1]:
            print(f"level {level}, repeat {repeat + 1}: {name}", file=sys.stderr)
            with garbage_collection_off():
                found[name].append(closed_loop(engines[name], submits, level))
    return found


def own_notes(levels: Sequence[LevelResult], loop: Loop) -> list[str]:
    """What a reader must know beside the figures."""
    said = []
    if any(one.differing for one in levels) and not loop.deterministic:
        said.append("without --deterministic, neighbours may tip near ties in reduced precision")
    cached = max(figures.cached for one in levels for figures in one.engines.values())
    if cached > CACHED_SHARE:
        said.append(
            f"up to {cached:.0%} of the prompt tokens came from the cache: use more prompts"
        )
    return said


def show(result: Result) -> None:
    """The table on stdout."""
    table = new_table((), _HEADINGS, _LEGEND)
    for one in result.levels:
        table.add_row(*_cells(one))
    show_table(result.machine.headline, table, result.notes)


_HEADINGS = (
    *("level", "requests", "auto tok/s", "off tok/s", "ratio", "nodes", "tau"),
    *("ms/step", "off ms/step", "first ms", "off first ms", "differing"),
)
_LEGEND = (
    "tok/s of all requests together; nodes drafted and tokens given (tau) per request and step; "
    "first: mean time to\nthe first token; differing: answers whose ids are not those of off"
)


def _cells(one: LevelResult) -> list[str]:
    auto, off = one.engines["auto"], one.engines["off"]
    return [
        *(str(one.level), str(one.requests)),
        *(f"{auto.tokens_per_second:.1f}", f"{off.tokens_per_second:.1f}", f"{one.ratio:.2f}x"),
        *(f"{auto.nodes:.1f}", f"{auto.tau:.2f}"),
        *(f"{auto.step_ms:.2f}", f"{off.step_ms:.2f}"),
        *(f"{auto.first_token_ms:.0f}", f"{off.first_token_ms:.0f}", f"{one.differing:.1%}"),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `falcon bench`, but for its methods, and those of the loop."""
    add_model_arguments(parser)
    add_protocol_arguments(parser)
    add = parser.add_argument
    add("--levels", default="1,2,4,8,16", metavar="N,N", help="(default: %(default)s)")
    add(
        "--requests",
        type=int,
        default=0,
        metavar="N",
        help=f"answers of each repeat (0: every prompt, at least {ROUNDS} rounds of the level)",
    )
    add("--max-num-seqs", type=int, default=16, metavar="N", help="slots (default: %(default)s)")
    add("--deterministic", action="store_true", help="no bit depends on a request's neighbours")


def measure_as_asked(args: argparse.Namespace) -> Result:
    """Check what was typed, then measure. Raises `BenchmarkError`."""
    loop = Loop(
        levels=parse_numbers("--levels", args.levels, int),
        requests=args.requests,
        max_num_seqs=args.max_num_seqs,
        deterministic=args.deterministic,
    )
    if choose_pair(args.model, args.drafter)[1] is None:
        raise BenchmarkError('--drafter is needed: "auto" and "off" are the same without one')
    return measure(settings_from(args), loop)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.concurrency")
    add_arguments(parser)
    parser.set_defaults(methods="falcon")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
    try:
        result = measure_as_asked(args)
    except BenchmarkError as error:
        return refuse("concurrency", error)
    show(result)
    if args.plot is not None:
        curves: dict[str, list[list[float]]] = {
            name: [one.speeds[name] for one in result.levels] for name in ENGINES
        }
        plot_levels(result.machine, [one.level for one in result.levels], curves, args.plot)
    print(json_line(asdict(result)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
