"""A benchmark from settings to result: load, warm up, measure, sum up."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from engine.loading import drafting_of
from engine.pretrained import choose_device
from tree.drawing import summarize

from .loading import load_methods, prepare
from .machine import describe_machine
from .methods import EngineMethod, Method
from .prompts import PromptSet
from .protocol import Trial, measure, warm_up
from .report import Result, method_results
from .settings import BASELINE, Settings, shown


def bench(settings: Settings) -> Result:
    """Run the protocol. Raises `BenchmarkError`."""
    load_average = os.getloadavg()[0]
    prompts, task = prepare(settings)
    methods = load_methods(settings, task, prompts.longest + settings.max_tokens)
    trials = run_trials(settings, methods, prompts)
    device = choose_device(settings.device)
    return Result(
        machine=describe_machine(device, methods[0].dtype, load_average),
        settings=settings_document(settings, methods),
        methods=method_results(trials, methods),
        num_prompts=len(trials),
        notes=tuple(notes(settings, methods, prompts)),
    )


def run_trials(settings: Settings, methods: list[Method], prompts: PromptSet) -> list[Trial]:
    """Warm up and measure, with a progress line on stderr that only moves between prompts."""
    first = prompts.prompts[: settings.warm_up]
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        warm_up(methods, first, _advance(progress, "warm-up", len(first)))
        advance = _advance(progress, "measure", len(prompts.prompts))
        return measure(methods, prompts.prompts, settings.repeats, advance)


def _advance(progress: Progress, description: str, total: int) -> Callable[[], None]:
    task = progress.add_task(description, total=total)

    def advance() -> None:
        progress.advance(task)
        progress.refresh()

    return advance


def settings_document(settings: Settings, methods: list[Method]) -> dict[str, Any]:
    """Everything that decides the outcome, as plain values."""
    ours = {method.name: method for method in methods if isinstance(method, EngineMethod)}
    plan = ours["falcon"].engine.decoder.plan if "falcon" in ours else None
    drafting = {name: drafting_of(own.engine) for name, own in ours.items() if name != BASELINE}
    return {
        "model": shown(settings.model),
        "drafter": None if settings.drafter is None else shown(settings.drafter),
        "methods": list(settings.methods),
        "prompts": [shown(file) for file in settings.prompts],
        "max_tokens": settings.max_tokens,
        **msgspec.to_builtins(settings.sampling),
        "repeats": settings.repeats,
        "limit": settings.limit,
        "warm_up": settings.warm_up,
        "plan": None if plan is None else summarize(plan.tree),
        "num_passes": None if plan is None else len(plan.passes),
        "plans": drafting,
    }


def notes(settings: Settings, methods: list[Method], prompts: PromptSet) -> list[str]:
    """What a reader must know beside the figures."""
    said = []
    if prompts.skipped:
        said.append(
            f"{prompts.skipped} prompts left out: too long for the context "
            f"with max_tokens {settings.max_tokens}"
        )
    said += [
        f"{method.name} samples with another random generator: its tokens are not compared"
        for method in methods
        if not method.is_comparable
    ]
    return said
