"""How a benchmark prints: a table for people, and as the last line one JSON document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MAX_WIDTH = 200  # a table in a pipe or a log must not be folded to 80 columns


def new_table(names: Sequence[str], figures: Sequence[str], legend: str) -> Table:
    """An empty table: names to the left of their columns, figures to the right."""
    table = Table(
        caption=legend,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def show_table(headline: str, table: Table, notes: Sequence[str]) -> None:
    """On what it was measured, the table, and what a reader must know beside it."""
    console = Console(highlight=False)
    room = console.options.update(max_width=MAX_WIDTH)
    console.width = max(console.width, console.measure(table, options=room).maximum)
    console.print(headline, soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)


def json_line(document: dict[str, Any]) -> str:
    """One line; structs become objects, paths text. Six decimals are more than any clock gives."""
    return json.dumps(_rounded(msgspec.to_builtins(document, enc_hook=str)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
