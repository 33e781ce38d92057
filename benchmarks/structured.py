"""What structured output costs: compiling, masking, and how much speculation still brings.

    python -m benchmarks.structured [--model DIR --drafter DIR] --prompts FILE --limit 12

Each prompt is answered freely and with each grammar, plainly and with the drafter. `host` is the
time of a step that is neither drafting nor the target's: masks are made there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec
from rich.table import Table

from engine.engine import Engine
from engine.messages import Grammar, SamplingParams, Submit

from .command import NO_PROTOCOL, add_model_arguments, refuse
from .loading import engine_config, load_checked, plain, prepare
from .machine import describe_machine
from .methods import Task
from .output import json_line, new_table, show_table
from .protocol import garbage_collection_off, rotated
from .settings import BenchmarkError, settings_from

PERSON = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "summary": {"type": "string"},
        "kind": {"enum": ["person", "place", "thing"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 1000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
        "where": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 30},
                "known": {"type": "boolean"},
            },
            "required": ["city", "known"],
        },
    },
    "required": ["title", "summary", "kind", "count", "tags", "where"],
}
GRAMMARS = {
    "free": None,
    "json_object": Grammar("json_object"),
    "json_schema": Grammar("json_schema", json.dumps(PERSON)),
    "regex": Grammar("regex", r"[A-Z][^.]{20,200}\. (The answer is|It is) \w+\."),
}
LEGEND = (
    "compile: ms until the grammar can be followed; tau tokens per step; host: ms of a step beside "
    "the models; whole: answers that ended by themselves; answers that differ from the plain ones"
)


@dataclass(slots=True)
class Case:
    """One engine with one grammar, and what its answers add up to."""

    engine: str
    grammar: str
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    host_ms: float = 0.0
    whole: int = 0
    differ: int = 0


def compile_ms(engine: Engine, grammar: Grammar) -> float:
    """How long a request with a new grammar waits for it."""
    assert engine.grammars is not None
    request = Submit("compiled", [0], 1, SamplingParams(), [0], grammar=grammar)
    start = time.perf_counter()
    engine.grammars.submit(request)
    while not any(engine.grammars.settle(1.0)):
        pass
    engine.grammars.abort(request.request_id)
    return 1e3 * (time.perf_counter() - start)


def answer(engine: Engine, prompt: Sequence[int], task: Task, case: Case) -> list[int]:
    """Ids of one answer, counted in the case; nothing of the prompt is found in the cache."""
    engine.scheduler.forget()
    limits = task.max_tokens, task.sampling, list(task.stop_token_ids)
    ids: list[int] = []
    start = time.perf_counter()
    engine.submit(Submit("0", list(prompt), *limits, grammar=GRAMMARS[case.grammar]))
    while engine.has_work:
        report = engine.step()
        for output in report.outputs:
            ids += output.token_ids
            case.steps += 1
            case.whole += output.finish_reason == "stop"
        case.host_ms += report.host_ms
    case.answers += 1
    case.tokens += len(ids)
    case.seconds += time.perf_counter() - start
    return ids


def measure(
    engines: dict[str, Engine], prompts: Sequence[Sequence[int]], task: Task, repeats: int
) -> list[Case]:
    """All cases on each prompt before the next; the first engine decodes plainly."""
    cases = [Case(engine, grammar) for grammar in GRAMMARS for engine in engines]
    first = next(iter(engines))
    with garbage_collection_off():
        for turn in range(repeats * len(prompts)):
            prompt = prompts[turn % len(prompts)]
            found = {
                (case.engine, case.grammar): (
                    case,
                    answer(engines[case.engine], prompt, task, case),
                )
                for case in rotated(cases, turn)
            }
            for (_, grammar), (case, ids) in found.items():
                case.differ += ids != found[first, grammar][1]
    return cases


def table_of(cases: Sequence[Case], compiled: dict[str, float]) -> Table:
    figures = ("compile", "tok/s", "x plain", "tau", "host", "whole", "differ")
    table = new_table(("grammar", "engine"), figures, LEGEND)
    plain_speed: dict[str, float] = {}
    for case in cases:
        speed = case.tokens / case.seconds
        base = plain_speed.setdefault(case.grammar, speed)
        table.add_row(
            case.grammar,
            case.engine,
            f"{compiled[case.grammar]:.1f}" if case.grammar in compiled else "-",
            f"{speed:.1f}",
            f"{speed / base:.2f}x",
            f"{case.tokens / case.steps:.2f}",
            f"{case.host_ms / case.steps:.2f}",
            f"{case.whole} of {case.answers}",
            str(case.differ),
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one model; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structured")
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="(default: 2)")
    parser.set_defaults(**NO_PROTOCOL)
    load_average = os.getloadavg()[0]
    try:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
        settings = settings_from(parser.parse_args(argv))
        prompts, task = prepare(settings)
        config = engine_config(settings, settings.drafter, prompts.longest + settings.max_tokens)
        engine = load_checked(msgspec.structs.replace(config, speculation="auto"))
    except BenchmarkError as error:
        return refuse("structured", error)
    engines = {"plain": plain(engine)} | ({} if settings.drafter is None else {"falcon": engine})
    loading = compile_ms(engine, Grammar("choice", '["a"]'))
    asked = {name: grammar for name, grammar in GRAMMARS.items() if grammar is not None}
    compiled = {name: compile_ms(engine, grammar) for name, grammar in asked.items()}
    cases = measure(engines, [prompt.ids for prompt in prompts.prompts], task, settings.repeats)
    machine = describe_machine(engine.target.device, engine.target.dtype, load_average)
    note = f"the first grammar of a process takes {loading:.0f} ms, mostly for loading"
    show_table(machine.headline, table_of(cases, compiled), [note])
    found = {"compile_ms": compiled, "cases": [asdict(case) for case in cases]}
    print(json_line({"machine": machine, "loading_ms": loading} | found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
