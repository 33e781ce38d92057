"""The record of a training run: JSON lines while it goes, a picture of them afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .progress import LOG_FILE

CURVES_FILE = "curves.png"
Record = dict[str, Any]


def append_record(out: Path, record: Record) -> None:
    """Add one line to the log."""
    with (out / LOG_FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def read_log(out: Path) -> list[Record]:
    """All whole records; a line that a crash cut off is left out."""
    file = out / LOG_FILE
    records: list[Record] = []
    for line in file.read_text(encoding="utf-8").split("\n") if file.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def rewind_log(out: Path, step: int) -> None:
    """Forget what was logged after the checkpoint that a run goes on from."""
    kept = [json.dumps(record) + "\n" for record in read_log(out) if record["step"] <= step]
    (out / LOG_FILE).write_text("".join(kept), encoding="utf-8")


def draw_curves(out: Path) -> None:
    """Write `curves.png` from the log: losses, acceptance per slot, tokens per block."""
    from matplotlib.figure import Figure  # half a second that only runs with curves pay

    train, held = (
        [record for record in read_log(out) if record["kind"] == kind] for kind in ("train", "eval")
    )
    figure = Figure(figsize=(13, 4), layout="constrained")
    losses, acceptance, tau = figure.subplots(1, 3)
    for name in ("feature_loss", "token_loss"):
        label = name.replace("_", " ")
        losses.plot(*_series(train, name), label=f"training {label}", linewidth=1)
        losses.plot(*_series(held, name), "--", label=f"held-out {label}")
    losses.set(title="Losses", yscale="log", xlabel="step")
    for slot in range(len(held[0]["acceptance"]) if held else 0):
        values = [record["acceptance"][slot] for record in held]
        acceptance.plot([record["step"] for record in held], values, label=f"slot {slot}")
    acceptance.set(title="Acceptance, earlier slots accepted", ylim=(0, 1), xlabel="step")
    tau.plot(*_series(held, "tau_block"), label="with the bonus token")
    tau.set(title="Tokens per block pass (top-1)", xlabel="step")
    for axes in (losses, acceptance, tau):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8)
    figure.savefig(out / CURVES_FILE, dpi=110)


def _series(records: list[Record], name: str) -> tuple[list[int], list[float]]:
    return [record["step"] for record in records], [record[name] for record in records]
