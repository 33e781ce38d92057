"""What `falcon tune` found: tables and trees for people, one JSON document for machines."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console

from drafter.plan import shape
from tree.drawing import draw, summarize
from tree.tables import count_blocks

from .output import json_line, new_table, show_table
from .settings import Settings, shown
from .step_times import StepModel
from .tuning import BatchResult, Trial, Tuning

_HEADINGS = (
    *("passes", "tau", "measured", "ms/step", "measured", "tok/s", "measured", "error", "x plain"),
)
_LEGEND = (
    "predicted beside measured; tau: tokens a sequence and step, the target's own counted; ms and "
    "tok/s while\nthe batch is full, prompts not counted; * the fastest, which is the one to serve"
)


def show(tuning: Tuning) -> None:
    """Times of the device, every tree that was tried, and the fastest of them drawn."""
    table = new_table(("batch", "tree"), _HEADINGS, _LEGEND)
    for one in tuning.batches:
        for trial in one.trials:
            table.add_row(*_cells(one, trial, tuning.block_size))
        table.add_section()
    notes = [f"batch {one.batch}: {_curve(one.model)}" for one in tuning.batches]
    said = f"{tuning.prompts} answers, {tuning.tokens} tokens; sharpness {tuning.sharpness:.1f}"
    show_table(tuning.machine.headline, table, [said, *notes])
    console = Console(highlight=False)
    drawn: dict[str, list[int]] = {}
    for tuned in tuning.trees:
        drawn.setdefault(draw(tuned.tree, tuned.accepted), []).append(tuned.batch)
    for picture, batches in drawn.items():
        heading = ", ".join(map(str, batches))
        console.print(f"\nbatch {heading}: ranks, and the share of steps that accept them")
        console.print(picture, soft_wrap=True)


def _cells(result: BatchResult, trial: Trial, block_size: int) -> list[str]:
    predicted, measured = trial.predicted, trial.measured
    plain = result.trials[0].measured.tokens_per_second
    mark = " *" if trial is result.best else ""
    passes = len(count_blocks(trial.tree, block_size))
    return [
        str(result.batch),
        f"{trial.name}: {shape(trial.tree, trial.dynamic)}{mark}",
        f"{measured.passes / measured.steps:.1f}" if trial.dynamic else str(passes),
        *("-" if predicted is None else f"{predicted.replay.tau:.2f}", f"{measured.tau:.2f}"),
        *("-" if predicted is None else f"{predicted.step_ms:.2f}", f"{measured.step_ms:.2f}"),
        "-" if predicted is None else f"{1e3 * predicted.rate:.1f}",
        f"{measured.tokens_per_second:.1f}",
        "-" if trial.error is None else f"{trial.error:+.1%}",
        f"{measured.tokens_per_second / plain:.2f}x",
    ]


def _curve(model: StepModel) -> str:
    """The times that predictions are made of, in words."""
    batch, costs = model.batch, model.costs
    forward = ", ".join(f"{rows} {ms:.1f}" for rows, ms in sorted(costs.forward.items()))
    passes = [costs.draft_ms(batch, blocks) for blocks in ((1,), (1, 1), (1, 2))]
    return (
        f"ms of a forward by rows: {forward}; first pass {passes[0]:.2f}, each other "
        f"{passes[1] - passes[0]:.2f}, each more block {passes[2] - passes[1]:.2f}; in a running "
        f"engine x{model.slowdown:.2f}, x{model.drafting:.2f}, and {model.host:.2f} of the host's"
    )


def document(tuning: Tuning, settings: Settings) -> str:
    """One line of JSON."""
    batches = [
        {
            "batch": one.batch,
            "forward_ms": one.model.costs.forward,
            "slowdown": one.model.slowdown,
            "drafting": one.model.drafting,
            "host_ms": one.model.host,
            "best": one.best.tree.to_json()["paths"],
            "dynamic": msgspec.to_builtins(one.best.dynamic),
            "trials": [_trial(trial) for trial in one.trials],
        }
        for one in tuning.batches
    ]
    return json_line(
        {
            "machine": tuning.machine,
            "settings": {
                "model": shown(settings.model),
                "drafter": None if settings.drafter is None else shown(settings.drafter),
                "prompts": [shown(file) for file in settings.prompts],
                "limit": settings.limit,
                "max_tokens": settings.max_tokens,
                "temperature": settings.sampling.temperature,
                "seed": settings.sampling.seed,
            },
            "prompts": tuning.prompts,
            "tokens": tuning.tokens,
            "sharpness": tuning.sharpness,
            "batches": msgspec.to_builtins(batches),
        }
    )


def _trial(trial: Trial) -> dict[str, Any]:
    predicted, measured = trial.predicted, trial.measured
    return {
        "name": trial.name,
        "tree": summarize(trial.tree),
        "paths": trial.tree.to_json()["paths"],
        "dynamic": msgspec.to_builtins(trial.dynamic),
        "predicted": None
        if predicted is None
        else {
            "tau": predicted.replay.tau,
            "step_ms": predicted.step_ms,
            "tokens_per_second": 1e3 * predicted.rate,
        },
        "measured": {
            "tau": measured.tau,
            "step_ms": measured.step_ms,
            "passes": measured.passes / measured.steps,
            "tokens_per_second": measured.tokens_per_second,
        },
        "error": trial.error,
    }
