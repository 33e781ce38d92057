"""How long a step takes with a tree: measured, and predicted for trees that were not.

    step = slowdown * forward(rows) + drafting * passes + host

Forwards and passes are timed alone (`engine/costs.py`). In a running engine they are slower: the
contexts are longer, the caches colder, the drafter's candidates sampled. And the host has work of
its own. So the three constants are fitted to the steps of a few trees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from engine.engine import Engine
from engine.messages import Submit
from engine.planner import Costs
from engine.rows import rows_each
from tree.replay import Replay
from tree.tables import count_blocks
from tree.topology import Tree

from .protocol import garbage_collection_off, rotated
from .settings import BenchmarkError
from .throughput import Recording, closed_loop

ROUNDS = 3  # requests for each place of a batch that are asked for before the next tree's turn


@dataclass(slots=True)
class Timed:
    """What an engine did at one batch size.

    `verify_ms`, `other_ms` and `passes` are of the `steps` in which the batch was full and no
    prompt was read; `tokens` came from all `outputs`, one a sequence and step.
    """

    batch: int
    steps: int = 0
    verify_ms: float = 0.0
    other_ms: float = 0.0
    tokens: int = 0
    outputs: int = 0
    passes: float = 0.0

    def add(self, recording: Recording) -> None:
        for _, report in recording.steps:
            self.tokens += sum(len(output.token_ids) for output in report.outputs)
            self.outputs += len(report.outputs)
            if len(report.outputs) == self.batch and report.computed_tokens == 0:
                self.steps += 1
                self.passes += report.passes
                self.verify_ms += report.verify_ms
                self.other_ms += report.draft_ms + report.host_ms

    @property
    def tau(self) -> float:
        return self.tokens / self.outputs

    @property
    def step_ms(self) -> float:
        return (self.verify_ms + self.other_ms) / self.steps

    @property
    def tokens_per_second(self) -> float:
        """Of the batch, while it decodes."""
        return 1e3 * self.batch * self.tau / self.step_ms


def time_engines(engines: Sequence[Engine], submits: Sequence[Submit], batch: int) -> list[Timed]:
    """Let every engine answer all requests, `batch` at a time; they take turns every few.

    Raises `BenchmarkError` where a batch was never full.
    """
    timed = [Timed(batch) for _ in engines]
    each = 1 if batch == 1 else ROUNDS * batch
    closed_loop(engines[0], submits[:batch], batch)  # warm-up
    for turn, first in enumerate(range(0, len(submits), each)):
        few = submits[first : first + each]
        with garbage_collection_off():
            for number in rotated(range(len(engines)), turn):
                timed[number].add(closed_loop(engines[number], few, batch))
    if not all(own.steps for own in timed):
        raise BenchmarkError(f"too few tokens to time {batch} answers at once: use more prompts")
    return timed


@dataclass(frozen=True, slots=True)
class StepModel:
    """Milliseconds of a step of `batch` sequences, for any tree and its replay."""

    costs: Costs
    batch: int
    block_size: int
    slowdown: float = 1.0
    drafting: float = 1.0
    host: float = 0.0

    def step_ms(self, tree: Tree, replay: Replay) -> float:
        verify, draft = self.alone(tree, replay)
        return self.slowdown * verify + self.drafting * draft + self.host

    def alone(self, tree: Tree, replay: Replay) -> tuple[float, float]:
        """The forward and the drafter's passes, timed alone."""
        blocks = count_blocks(tree, self.block_size)
        draft = self.costs.draft_ms(self.batch, blocks, replay.passes)
        return self._verify_ms(replay.rows), draft

    def _verify_ms(self, rows: Counter[int]) -> float:
        """All sequences have as many rows as the one with the most."""
        ms = below = 0.0
        for needed, count in sorted(rows.items()):
            upto = below + count / rows.total()
            padded = rows_each(needed, self.batch, self.costs.fewest_rows)
            ms += (upto**self.batch - below**self.batch) * self.costs.verify_ms(self.batch, padded)
            below = upto
        return ms

    @property
    def block_ms(self) -> float:
        """What one more block in a pass takes."""
        return self.drafting * self.costs.block_ms(self.batch)


def fit(model: StepModel, pilots: Sequence[tuple[Tree, Replay, Timed]]) -> StepModel:
    """The model with its constants fitted to the steps of a few trees."""
    alone = [model.alone(tree, own) for tree, own, _ in pilots]
    timed = [timed for _, _, timed in pilots]
    slowdown = sum(own.verify_ms / own.steps for own in timed) / sum(verify for verify, _ in alone)
    drafts = [draft for _, draft in alone]
    others = [own.other_ms / own.steps for own in timed]
    drafting, host = _line(drafts, others)
    return StepModel(model.costs, model.batch, model.block_size, slowdown, drafting, host)


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the least squares, of a line through 0 where it would start below."""
    x, y = fmean(xs), fmean(ys)
    spread = sum((one - x) ** 2 for one in xs)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread if spread else 0.0
    if slope < 0.0:
        return 0.0, y
    if slope * x > y:
        return sum(a * b for a, b in zip(xs, ys, strict=True)) / sum(a * a for a in xs), 0.0
    return slope, y - slope * x
