"""`falcon bench --report DIR`: the paper's tables on this machine, as Markdown and pictures.

DIR/report.md    speed-up and tau by method and data set, ablations, temperatures, what was run
DIR/speed.png    speed-up over plain decoding, by data set
DIR/report.json  everything, one document for each temperature
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .figures import Figures
from .picture import plot_speedups
from .report import OVERALL, Result, document
from .settings import BASELINE, METHODS, demo_pair, shown

REFERENCE = "falcon"
TITLES = {
    "ar": "plain decoding",
    "sps": "SpS",
    "pld": "PLD",
    "lookahead": "Lookahead",
    "medusa": "Medusa",
    "eagle": "EAGLE",
    "falcon": "**Falcon**",
    "hf": "transformers",
}


def write_report(results: Sequence[Result], command: str, folder: Path) -> None:
    """Write the report of runs at one temperature each, of which the first is the main one."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = [json.loads(document(result)) for result in results]
    (folder / "report.json").write_text(json.dumps(documents, indent=1) + "\n")
    plot_speedups(results[0], [name for name in METHODS if name != "hf"], folder / "speed.png")
    (folder / "report.md").write_text("\n\n".join(sections(results, command)) + "\n")


def sections(results: Sequence[Result], command: str) -> Iterable[str]:
    """The parts of the report, in order."""
    first = results[0]
    methods = [name for name in METHODS if name in first.methods]
    variants = [name for name in first.methods if name not in METHODS]
    yield "# Falcon and its rivals, on one target"
    yield how_it_was_measured(first, command)
    yield "## Speed-up over plain decoding"
    yield table(first, methods, "speedup", "{:.2f}x")
    yield "![speed-up by method and data set](speed.png)"
    yield "Falcon's tokens per second over each rival's, and tokens per second:"
    yield margins(first, methods)
    yield "## Tokens per step"
    yield "tau counts the bonus token; tau_0 = tau - 1, alpha = tau_0 / tau."
    yield table(first, methods, "tau", "{:.2f}")
    yield table(first, methods, "tau_0", "{:.2f}")
    yield table(first, methods, "alpha", "{:.1%}")
    if variants:
        yield "## Ablations and variants"
        yield ablations(first, [REFERENCE, *variants])
    if len(results) > 1:
        yield "## Temperature"
        yield temperatures(results)
    yield "## What each method was given"
    yield budgets(first)
    if first.settings["model"] == shown(demo_pair()[0]):
        yield "How the demo's drafters were trained and tuned: models/demo/README.md."


def how_it_was_measured(result: Result, command: str) -> str:
    settings = result.settings
    target = f"target {settings['model']}, {result.num_prompts} prompts, up to "
    target += f"{settings['max_tokens']} tokens, seed {settings['seed']}, one request at a time; "
    target += "all methods answer each prompt before the next one"
    shares = [
        f"{name} {own.overall.identical:.1%}"
        for name, own in result.methods.items()
        if own.overall.identical is not None
    ]
    identical = f"answers identical to plain decoding: {', '.join(shares)}"
    lines = [result.machine.headline, target, identical, *result.notes, f"`{command}`"]
    return "\n".join(f"- {line}" for line in lines)


def table(result: Result, methods: Sequence[str], figure: str, form: str) -> str:
    """One figure by method and data set."""

    def cell(figures: Figures) -> str:
        value = getattr(figures, figure)
        return "-" if value is None else form.format(value)

    rows = [[TITLES[name], *(cell(own) for own in by_source(result, name))] for name in methods]
    return markdown([figure, *names_of(result)], rows)


def margins(result: Result, methods: Sequence[str]) -> str:
    falcon = result.methods[REFERENCE].overall.tokens_per_second
    rows = []
    for name in methods:
        own = result.methods[name].overall
        over = "" if name == REFERENCE else f"{falcon / own.tokens_per_second:.2f}x"
        low, high = own.tokens_per_second_range
        rows.append(
            [TITLES[name], f"{own.tokens_per_second:.1f}", f"{low:.1f} to {high:.1f}", over]
        )
    return markdown(["method", "tokens/s", "slowest to fastest repeat", "Falcon over it"], rows)


def ablations(result: Result, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        own = result.methods[name].overall
        cells = f"{own.tokens_per_second:.1f}", f"{own.tau_0:.2f}", f"{own.alpha:.1%}"
        speedup = "-" if own.speedup is None else f"{own.speedup:.2f}x"
        rows.append([TITLES.get(name, name), speedup, *cells, f"{own.nodes:.0f}"])
    return markdown(["drafter", "speed-up", "tokens/s", "tau_0", "alpha", "nodes"], rows)


def temperatures(results: Sequence[Result]) -> str:
    """Speed-up and tau_0 of what was measured at more than one temperature."""
    first, *others = results
    names = [n for n in first.methods if n != BASELINE and any(n in o.methods for o in others)]
    names += [name for name in others[-1].methods if name not in first.methods]

    def cell(result: Result, name: str) -> str:
        if name not in result.methods:
            return "-"
        own = result.methods[name].overall
        return f"{own.speedup or 0.0:.2f}x, {own.tau_0:.2f}"

    rows = [[TITLES.get(name, name), *(cell(one, name) for one in results)] for name in names]
    headings = [f"T {result.settings['temperature']:g}" for result in results]
    return markdown(["speed-up, tau_0", *headings], rows)


def budgets(result: Result) -> str:
    """The plans, each tuned for its own method, on which prompts is for the reader to say."""
    rows = []
    for name, plan in result.settings["plans"].items():
        memory = result.methods[name].memory
        rows.append([TITLES.get(name, name), plan, f"{memory.parameters / 2**20:.1f}"])
    return markdown(["method", "plan", "MiB of weights, the target's too"], rows)


def by_source(result: Result, name: str) -> list[Figures]:
    own = result.methods[name]
    sources = result.sources if len(result.sources) > 1 else []
    return [*(own.per_file[source] for source in sources), own.overall]


def names_of(result: Result) -> list[str]:
    return [*(result.sources if len(result.sources) > 1 else []), OVERALL]


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
