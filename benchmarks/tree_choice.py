"""The drafts with the most predicted tokens per second, from records and the times of steps.

Which places a tree's steps have their roots at depends on the tree: where it fails, the next step
begins. So the search goes in rounds. It takes the best trees of all sizes for the roots so far,
replays each of them exactly, and goes on with the roots of the fastest, until none is faster.
Dynamic drafts of chains are replayed one by one, all that there are of a few sizes and trusts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from drafter.config import Dynamic
from drafter.plan import LEAST_DYNAMIC
from engine.rows import ROW_CLASS, ROW_STEP, round_up, rows_each
from tree.chains import ChainDraft, Place, replay_chains
from tree.replay import Record, Replay, replay, shares
from tree.search import Limits, best_trees
from tree.topology import ROOT_ONLY, RankPath, Tree

from .step_times import StepModel

MAX_ROUNDS = 8
WIDTH = 3  # candidates of each level of a dynamic draft
TRUSTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)  # of them: what naming more has to promise
MOST_STEPS = 4  # of rows above those of a class
RARE = 2  # steps: a path that was right less often says nothing


@dataclass(frozen=True, slots=True)
class Candidate:
    """A draft and what is predicted for it; `rate` in tokens per millisecond of a batch."""

    tree: Tree
    dynamic: Dynamic | None
    replay: Replay
    step_ms: float
    rate: float


@dataclass(slots=True)
class Chooser:
    """Searches the trees of one drafter. `max_rows` bounds the rows of a sequence. `places` are
    those of all answers, for dynamic drafts, with `sharpness` the drafter's; it names `at_once`
    levels together.
    """

    records: Sequence[Record]
    limits: Limits
    max_rows: int
    places: Sequence[Sequence[Place]] = ()
    sharpness: float = 1.0
    at_once: int = 1
    replays: dict[Tree, Replay] = field(default_factory=dict)
    chain_replays: dict[tuple[ChainDraft, int], Replay] = field(default_factory=dict)

    def replay(self, tree: Tree) -> Replay:
        if tree not in self.replays:
            self.replays[tree] = replay(
                tree, self.records, self.max_provisional(tree, tree.num_nodes)
            )
        return self.replays[tree]

    def max_provisional(self, tree: Tree, beside: int) -> int:
        """As `SpeculativeDecoder` has it with this plan alone, `beside` many tokens verifying that
        many nodes at least.
        """
        return max(0, min(tree.max_branch, self.max_rows - beside))

    def candidate(self, tree: Tree, model: StepModel) -> Candidate:
        own = self.replay(tree)
        step_ms = model.step_ms(tree, own)
        return Candidate(tree, None, own, step_ms, model.batch * own.tau / step_ms)

    def search(self, model: StepModel) -> list[Candidate]:
        """The fastest tree of each number of passes, fastest first."""
        plain = self.candidate(ROOT_ONLY, model)
        best: dict[int, Candidate] = {0: plain}
        roots, rate = self.all_roots(), plain.rate
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

    def dynamic(self, model: StepModel) -> list[Candidate]:
        """Dynamic drafts of chains, no two with the same steps, the fastest first."""
        fewest = rows_each(1, model.batch, model.costs.fewest_rows)
        most = min(
            round_up(self.limits.nodes, ROW_STEP),
            self.max_rows,
            rows_each(1, model.batch, ROW_CLASS) + MOST_STEPS * ROW_STEP,
        )
        found = {
            (one.replay.passes, *sorted(one.replay.rows.items())): one
            for rows in range(fewest, most + 1, ROW_STEP)
            for one in (self.chain_candidate(rows, trust, model) for trust in TRUSTS)
        }
        return sorted(found.values(), key=lambda one: -one.rate)

    def chain_candidate(self, rows: int, trust: float, model: StepModel) -> Candidate:
        """A dynamic draft that verifies so many rows, over the model's batch."""
        depth = min(self.limits.depth, rows - 1)
        draft = ChainDraft(depth, WIDTH, self.at_once, rows, trust)
        key = draft, model.batch
        if key not in self.chain_replays:
            again = self.max_provisional(draft.tree, LEAST_DYNAMIC)
            self.chain_replays[key] = replay_chains(
                draft, self.places, model.batch, model.block_size, again
            )
        own = self.chain_replays[key]
        step_ms = model.step_ms(draft.tree, own)
        dynamic = Dynamic(num_verified=rows, least_trust=trust, sharpness=self.sharpness)
        return Candidate(draft.tree, dynamic, own, step_ms, model.batch * own.tau / step_ms)

    def all_roots(self) -> Counter[RankPath]:
        """Every place of every answer as a root: the steps of plain decoding."""
        return self.replay(ROOT_ONLY).roots

    def _seen(self, roots: Counter[RankPath]) -> dict[RankPath, float]:
        """The shares of paths that were right more than by chance."""
        found = shares(roots).items()
        return {path: share for path, share in found if share * roots.total() >= RARE}
