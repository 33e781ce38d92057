"""The trees with the most predicted tokens per second, from a record and the times of steps.

Which places a tree's steps have their roots at depends on the tree: where it fails, the next step
begins. So the search goes in rounds. It takes the best trees of all sizes for the roots so far,
replays each of them exactly, and goes on with the roots of the fastest, until none is faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from drafter.config import Dynamic
from tree.replay import Record, Replay, replay, shares
from tree.search import Limits, best_trees
from tree.topology import MAX_NODES, ROOT_ONLY, RankPath, Tree

from .step_times import StepModel

MAX_ROUNDS = 8
TRUSTS = (0.3, 0.6)  # of dynamic plans: what a pass has to promise
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
    picked off the top-1 chain are provisional; None where they are not. `sharpness` is the
    drafter's, for dynamic plans.
    """

    records: Sequence[Record]
    limits: Limits
    max_rows: int | None
    sharpness: float = 1.0
    replays: dict[Tree, Replay] = field(default_factory=dict)

    def replay(self, tree: Tree) -> Replay:
        if tree not in self.replays:
            self.replays[tree] = replay(tree, self.records, self.max_provisional(tree))
        return self.replays[tree]

    def max_provisional(self, tree: Tree) -> int | None:
        """As `SpeculativeDecoder` has it with this tree alone."""
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
        seen, size = self._seen(roots), self.limits.block_size
        trees: list[Tree] = []
        for depth in range(size, self.limits.depth + 1, size):
            trees += best_trees(seen, Limits(self.limits.nodes, depth, size), price)
        return list(dict.fromkeys(trees))

    def dynamic_plans(self, best: Tree, rows: int) -> list[tuple[Tree, Dynamic]]:
        """Drafts of up to `rows` rows that may become wider and deeper than the best tree."""
        size = self.limits.block_size
        depth = min(self.limits.depth, best.max_depth + size)
        most = min(MAX_NODES, 2 * rows)
        *_, wide = best_trees(self._seen(self.places()), Limits(most, depth, size))
        shapes = [
            Dynamic(num_verified=rows, least_trust=t, sharpness=self.sharpness) for t in TRUSTS
        ]
        return [(wide, dynamic) for dynamic in shapes if rows < wide.num_nodes]

    def places(self) -> Counter[RankPath]:
        """Every place of every answer as a root: the steps of plain decoding."""
        return self.replay(ROOT_ONLY).roots

    def _seen(self, roots: Counter[RankPath]) -> dict[RankPath, float]:
        """The shares of paths that were right more than by chance."""
        found = shares(roots).items()
        return {path: share for path, share in found if share * roots.total() >= RARE}
