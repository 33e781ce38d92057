"""Benchmarks as pictures, drawn without a display and without pyplot's global state.

Methods: tokens per second by file, and milliseconds of a step. Concurrency: one curve an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .machine import Machine
from .report import OVERALL, Result

PHASES = {"draft": "tab:orange", "verify": "tab:blue", "host": "tab:gray"}


def plot(result: Result, file: Path) -> None:
    """Write a PNG: speeds on the left, a step's milliseconds on the right."""
    figure = _sheet(result.machine, width=11)
    left, right = figure.subplots(1, 2)
    _draw_speeds(left, result)
    _draw_steps(right, result)
    figure.savefig(file, format="png", dpi=150)


def plot_speedups(result: Result, names: Sequence[str], file: Path) -> None:
    """Write a PNG: speed-up over plain decoding, one group of bars a data set."""
    figure = _sheet(result.machine, width=11)
    axes = figure.subplots()
    groups = [*result.sources, OVERALL] if len(result.sources) > 1 else [OVERALL]
    shown = [name for name in names if name in result.methods]
    width = 0.8 / len(shown)
    for number, name in enumerate(shown):
        own = result.methods[name]
        rows = [own.overall if g == OVERALL else own.per_file[g] for g in groups]
        places = [g + (number - (len(shown) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(places, [row.speedup or 0.0 for row in rows], width, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("speed-up over plain decoding")
    axes.margins(y=0.15)
    _legend_above(axes)
    figure.savefig(file, format="png", dpi=150)


def plot_levels(
    machine: Machine,
    levels: Sequence[int],
    curves: Mapping[str, Sequence[Sequence[float]]],
    file: Path,
) -> None:
    """Write a PNG: by name, tokens per second of every repeat at each level, and their medians."""
    figure = _sheet(machine, width=7)
    axes = figure.subplots()
    for name, speeds in curves.items():
        [line] = axes.plot(levels, [median(repeats) for repeats in speeds], "o-", label=name)
        for level, repeats in zip(levels, speeds, strict=True):
            axes.plot([level] * len(repeats), repeats, "_", color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests at once")
    axes.set_ylabel("output tokens per second, all requests together")
    _legend_above(axes)
    figure.savefig(file, format="png", dpi=150)


def _sheet(machine: Machine, width: float) -> Figure:
    """An empty figure that says on what it was measured."""
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{machine.cpu}, threads: {machine.threads}, {machine.dtype} on {machine.device}, "
        f"{machine.date[:10]}",
        fontsize=10 if width > 8 else 8,
    )
    return figure


def _draw_speeds(axes: Axes, result: Result) -> None:
    """Bars of tokens per second, one group a file, with the range over the repeats."""
    groups = [*result.sources, OVERALL] if len(result.sources) > 1 else [OVERALL]
    width = 0.8 / len(result.methods)
    for number, (name, own) in enumerate(result.methods.items()):
        rows = [own.overall if g == OVERALL else own.per_file[g] for g in groups]
        speeds = [row.tokens_per_second for row in rows]
        ranges = [row.tokens_per_second_range for row in rows]
        below = [max(0.0, s - low) for s, (low, _) in zip(speeds, ranges, strict=True)]
        above = [max(0.0, high - s) for s, (_, high) in zip(speeds, ranges, strict=True)]
        places = [g + (number - (len(result.methods) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(places, speeds, width, yerr=[below, above], capsize=3, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlabel("prompts")
    axes.set_ylabel("output tokens per second, end to end")
    axes.margins(y=0.15)
    _legend_above(axes)


def _draw_steps(axes: Axes, result: Result) -> None:
    """Stacked milliseconds of a step; a method that does not tell its phases is one hatched bar."""
    names = list(result.methods)
    below = [0.0] * len(names)
    for phase, color in PHASES.items():
        parts = [getattr(result.methods[name].overall.ms, phase) or 0.0 for name in names]
        axes.bar(names, parts, bottom=below, color=color, label=phase)
        below = [b + part for b, part in zip(below, parts, strict=True)]
    whole = [
        own.overall.ms.step if own.overall.ms.verify is None else 0.0
        for own in result.methods.values()
    ]
    if any(whole):
        label = "whole step and its share of prefill"
        axes.bar(names, whole, color="white", edgecolor="black", hatch="//", label=label)
    for name, total in zip(names, map(max, below, whole), strict=True):
        tau = result.methods[name].overall.tau
        axes.annotate(f"{tau:.2f} tokens", (name, total), ha="center", va="bottom", fontsize=8)
    axes.set_xlabel("method, and tokens per step (tau)")
    axes.set_ylabel("milliseconds per step")
    axes.margins(y=0.15)
    _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    """Over the axes, where it hides no bar."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)
