"""One result, told twice: a table for people and a JSON document for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.table import Table

from .figures import Figures, figures
from .machine import Machine
from .methods import Memory, Method
from .output import json_line, new_table, show_table
from .protocol import Trial

OVERALL = "all"


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
            **msgspec.to_builtins(own.overall),
            "memory_mb": {
                "parameters": round(own.memory.parameters / 2**20, 2),
                "kv": round(own.memory.keys_values / 2**20, 2),
            },
            "per_file": own.per_file,
        }
        for name, own in result.methods.items()
    }
    return json_line(
        {
            "machine": result.machine,
            "prompts": result.num_prompts,
            "settings": result.settings,
            "methods": methods,
            "notes": list(result.notes),
        }
    )


def show(result: Result) -> None:
    """The table on stdout."""
    show_table(result.machine.headline, _table(result), result.notes)


def _table(result: Result) -> Table:
    """Rows by file and method; the rows over all prompts last."""
    table = new_table(("prompts", "method"), _HEADINGS, _LEGEND)
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
