"""One result, told twice: a table for people and a JSON document for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .figures import Figures, figures
from .machine import Machine
from .methods import Memory, Method
from .protocol import Trial

OVERALL = "all"
MIN_WIDTH = 118  # a table in a pipe or a log must not be folded to 80 columns


@dataclass(frozen=True, slots=True)
class MethodResult:
    """A method's figures over all prompts and for each prompt file."""

    overall: Figures
    per_file: dict[str, Figures]
    memory: Memory


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that a run has to say."""

    machine: Machine
    settings: dict[str, Any]
    methods: dict[str, MethodResult]
    num_prompts: int
    notes: tuple[str, ...]

    @property
    def sources(self) -> list[str]:
        first = next(iter(self.methods.values()))
        return list(first.per_file)


def method_results(trials: Sequence[Trial], methods: Sequence[Method]) -> dict[str, MethodResult]:
    """Figures of every method, over all and by file."""
    sources = dict.fromkeys(trial.source for trial in trials)
    parts = {source: [t for t in trials if t.source == source] for source in sources}
    return {
        method.name: MethodResult(
            overall=figures(trials, method.name, method.is_comparable),
            per_file={
                source: figures(part, method.name, method.is_comparable)
                for source, part in parts.items()
            },
            memory=method.memory(),
        )
        for method in methods
    }


def document(result: Result) -> str:
    """One line of JSON."""
    methods = {
        name: {
            **_figures_document(own.overall),
            "memory_mb": {
                "parameters": round(own.memory.parameters / 2**20, 2),
                "kv": round(own.memory.keys_values / 2**20, 2),
            },
            "per_file": {s: _figures_document(part) for s, part in own.per_file.items()},
        }
        for name, own in result.methods.items()
    }
    return json.dumps(
        {
            "machine": _rounded(msgspec.to_builtins(result.machine)),
            "prompts": result.num_prompts,
            "settings": result.settings,
            "methods": methods,
            "notes": list(result.notes),
        }
    )


def show(result: Result) -> None:
    """The table on stdout."""
    console = Console(highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    machine = result.machine
    console.print(
        f"{machine.cpu}, {machine.cores} cores, threads: {machine.threads}, {machine.dtype} on "
        f"{machine.device}, torch {machine.torch}, transformers {machine.transformers}, "
        f"{machine.date}, load average {machine.load_average:.1f} at the start",
        soft_wrap=True,
    )
    console.print(_table(result))
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)


def _table(result: Result) -> Table:
    """Rows by file and method; the rows over all prompts last."""
    table = Table(
        caption=_LEGEND,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in ("prompts", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    sources = result.sources if len(result.sources) > 1 else []
    for source in [*sources, OVERALL]:
        for name, own in result.methods.items():
            figure = own.overall if source == OVERALL else own.per_file[source]
            table.add_row(f"{source} ({figure.prompts})", name, *_cells(figure))
        table.add_section()
    return table


_HEADINGS = (
    *("tok/s", "x ar", "x hf", "tau", "tau_0", "alpha", "nodes"),
    *("prefill", "draft", "verify", "host", "identical"),
)
_LEGEND = (
    "tok/s end to end, and over ar and hf; tau with the bonus token, tau_0 without; "
    "nodes checked per step; "
    "ms per prompt of prefill, per step of draft, verify, host"
)


def _cells(figure: Figures) -> list[str]:
    ms = figure.ms
    return [
        f"{figure.tokens_per_second:.1f}",
        _number(figure.speedup, "{:.2f}x"),
        _number(figure.speedup_over_hf, "{:.2f}x"),
        f"{figure.tau:.2f}",
        f"{figure.tau_0:.2f}",
        f"{figure.alpha:.2f}",
        f"{figure.nodes:.0f}",
        *(_number(part, "{:.2f}") for part in (ms.prefill, ms.draft, ms.verify, ms.host)),
        _number(figure.identical, "{:.1%}"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _figures_document(figure: Figures) -> dict[str, Any]:
    rounded: dict[str, Any] = _rounded(msgspec.to_builtins(figure))
    return rounded


def _rounded(value: Any) -> Any:
    """Six decimals are more than any clock here gives."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
