"""What a predicted output brings: from right over edited to wrong, with and without a drafter.

    python -m benchmarks.prediction [--model DIR --drafter DIR] --prompts FILE --limit 12

The prediction for a prompt is its own plain answer with an edit every so many tokens: one replaced,
one left out, one put in, by turns. The wrong one is the answer to another prompt.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import msgspec
from rich.table import Table

from drafter.plan import build_plan
from engine.engine import Engine
from engine.messages import RequestOutput, Submit
from engine.planner import Planner
from engine.speculative import SpeculativeDecoder
from tree.topology import ROOT_ONLY

from .command import NO_PROTOCOL, add_model_arguments, refuse
from .loading import engine_config, load_checked, plain, prepare
from .machine import describe_machine
from .methods import Task
from .output import json_line, new_table, show_table
from .protocol import garbage_collection_off, rotated
from .settings import BenchmarkError, Settings, settings_from

EDITS = {"right": 0, "an edit in 40 tokens": 40, "an edit in 10 tokens": 10}
LEGEND = (
    "tok/s end to end; tau tokens per step; accepted and rejected tokens of the prediction "
    "per token of the answer; answers that differ from the plain ones"
)


@dataclass(slots=True)
class Case:
    """One engine with one kind of prediction, and what its answers add up to."""

    engine: str
    prediction: str
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    accepted: int = 0
    rejected: int = 0
    differ: int = 0

    def add(self, outputs: Sequence[RequestOutput], seconds: float, answer: Sequence[int]) -> None:
        ids = ids_of(outputs)
        self.tokens += len(ids)
        self.seconds += seconds
        self.steps += len(outputs)
        self.accepted += sum(output.sources.count("predicted") for output in outputs)
        self.rejected += sum(output.rejected_predicted for output in outputs)
        self.differ += ids != list(answer)


def ids_of(outputs: Sequence[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def edited(answer: Sequence[int], every: int) -> list[int]:
    """Every so many tokens one is replaced, left out, or followed by another; never for 0."""
    predicted: list[int] = []
    for place, token in enumerate(answer):
        if every == 0 or place % every != every // 2:
            predicted.append(token)
            continue
        other = answer[place - every // 2]
        predicted += ([other], [], [token, other])[place // every % 3]
    return predicted


def predictions(answers: Sequence[Sequence[int]]) -> Iterator[dict[str, list[int]]]:
    """By kind, for each answer."""
    for number, answer in enumerate(answers):
        own = {name: edited(answer, every) for name, every in EDITS.items()}
        yield {"none": []} | own | {"wrong": list(answers[number - 1])}


def answer(
    engine: Engine, prompt: Sequence[int], prediction: Sequence[int], task: Task
) -> tuple[list[RequestOutput], float]:
    """What every step gave, and seconds; nothing of the prompt is found in the cache."""
    engine.scheduler.forget()
    limits = task.max_tokens, task.sampling, list(task.stop_token_ids)
    outputs: list[RequestOutput] = []
    start = time.perf_counter()
    engine.submit(Submit("0", list(prompt), *limits, prediction_ids=list(prediction)))
    while engine.has_work:
        outputs += engine.step().outputs
    return outputs, time.perf_counter() - start


def measure(
    engines: dict[str, Engine], prompts: Sequence[Sequence[int]], task: Task, repeats: int
) -> list[Case]:
    """All cases on each prompt before the next; the first engine decodes plainly."""
    first = next(iter(engines))
    answers = [ids_of(answer(engines[first], prompt, [], task)[0]) for prompt in prompts]
    kinds = list(next(predictions(answers)))
    cases = [Case(first, kinds[0])]
    cases += [Case(name, kind) for name in engines if name != first for kind in kinds]
    guesses = list(predictions(answers))
    with garbage_collection_off():
        for turn in range(repeats * len(prompts)):
            number = turn % len(prompts)
            for case in rotated(cases, turn):
                guess = guesses[number][case.prediction]
                case.add(
                    *answer(engines[case.engine], prompts[number], guess, task), answers[number]
                )
    return cases


def load_engines(settings: Settings, longest: int) -> dict[str, Engine]:
    """Plain, with the drafter, and without; all on one target. Raises `BenchmarkError`."""
    config = engine_config(settings, settings.drafter, longest + settings.max_tokens)
    engine = load_checked(msgspec.structs.replace(config, speculation="auto"))
    engines = {"plain": plain(engine)}
    if settings.drafter is not None:
        engines["drafter"] = engine
    target, sampler = engine.target, engine.decoder.sampler
    plan = build_plan(ROOT_ONLY, 1, target.device)
    assert engine.policy.planner is not None, "automatic speculation has one"
    planner = Planner([plan], engine.policy.planner.costs, {})
    decoder = SpeculativeDecoder(target, None, plan, sampler)
    return engines | {"no drafter": Engine(target, decoder, 1, planner)}


def table_of(cases: Sequence[Case]) -> Table:
    figures = ("tok/s", "x plain", "tau", "accepted", "rejected", "differ")
    table = new_table(("engine", "prediction"), figures, LEGEND)
    base = cases[0].tokens / cases[0].seconds
    for case in cases:
        speed = case.tokens / case.seconds
        table.add_row(
            case.engine,
            case.prediction,
            f"{speed:.1f}",
            f"{speed / base:.2f}x",
            f"{case.tokens / case.steps:.2f}",
            f"{case.accepted / case.tokens:.2f}",
            f"{case.rejected / case.tokens:.2f}",
            str(case.differ),
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one model; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction")
    add_model_arguments(parser)
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="(default: 2)")
    parser.set_defaults(**NO_PROTOCOL)
    load_average = os.getloadavg()[0]
    try:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
        settings = settings_from(parser.parse_args(argv))
        prompts, task = prepare(settings)
        engines = load_engines(settings, prompts.longest)
    except BenchmarkError as error:
        return refuse("prediction", error)
    cases = measure(engines, [prompt.ids for prompt in prompts.prompts], task, settings.repeats)
    target = engines["plain"].target
    machine = describe_machine(target.device, target.dtype, load_average)
    show_table(machine.headline, table_of(cases), [])
    print(json_line({"machine": machine, "cases": [asdict(case) for case in cases]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
