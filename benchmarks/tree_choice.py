"""The trees with the most predicted tokens per second, from a record and the times of steps.

Which places a tree's steps have their roots at depends on the tree: where it fails, the next step
begins. So the search goes in rounds. It takes the best trees of all sizes for the roots so far,
replays each of them exactly, and goes on with the roots of the fastest, until none is faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tree.replay import Record, Replay, replay, shares
from tree.search import Limits, best_trees
from tree.topology import ROOT_ONLY, RankPath, Tree

from .step_times import StepModel

MAX_ROUNDS = 8
RARE = 2  # steps: a path that was right less often says nothing


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tree and what is predicted for it; `rate` in tokens per millisecond of a batch."""

    tree: Tree
    replay: Replay
    step_ms: float
    rate: float


@dataclass(slots=True)
class Chooser:
    """Searches the trees of one drafter. `max_rows` bounds the rows of a sequence where tokens
    picked off the top-1 chain are provisional; None where they are not.
    """

    records: Sequence[Record]
    limits: Limits
    max_rows: int | None
    replays: dict[Tree, Replay] = field(default_factory=dict)

    def replay(self, tree: Tree) -> Replay:
        if tree not in self.replays:
            self.replays[tree] = replay(tree, self.records, self.max_provisional(tree))
        return self.replays[tree]

    def max_provisional(self, tree: Tree) -> int | None:
        """As `SpeculativeDecoder` has it."""
        if self.max_rows is None:
            return None
        return max(0, min(tree.max_branch, self.max_rows - tree.num_nodes))

    def candidate(self, tree: Tree, model: StepModel) -> Candidate:
        own = self.replay(tree)
        step_ms = model.step_ms(tree, own)
        return Candidate(tree, own, step_ms, model.batch * own.tau / step_ms)

    def search(self, model: StepModel) -> list[Candidate]:
        """The fastest tree of each number of passes, fastest first."""
        plain = self.candidate(ROOT_ONLY, model)
        best: dict[int, Candidate] = {0: plain}
        roots, rate = self.places(), plain.rate
        for _ in range(MAX_ROUNDS):
            price = rate / model.batch * model.block_ms
            for tree in self.likely_trees(roots, price):
                passes = -(-tree.max_depth // self.limits.block_size)
                one = self.candidate(tree, model)
                if passes not in best or one.rate > best[passes].rate:
                    best[passes] = one
            fastest = max(best.values(), key=lambda one: one.rate)
            if fastest.rate <= rate:
                break
            roots, rate = fastest.replay.roots, fastest.rate
        return sorted(best.values(), key=lambda one: -one.rate)

    def likely_trees(self, roots: Counter[RankPath], price: float = 0.0) -> list[Tree]:
        """The best trees of every size for each number of passes."""
        found = shares(roots)
        seen = {path: share for path, share in found.items() if share * roots.total() >= RARE}
        size = self.limits.block_size
        trees: list[Tree] = []
        for depth in range(size, self.limits.depth + 1, size):
            trees += best_trees(seen, Limits(self.limits.nodes, depth, size), price)
        return list(dict.fromkeys(trees))

    def places(self) -> Counter[RankPath]:
        """Every place of every answer as a root: the steps of plain decoding."""
        return self.replay(ROOT_ONLY).roots
