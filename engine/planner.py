"""How much to draft: for each step the plan with the most predicted tokens per second.

    tokens per second = batch * tau(plan) / (forward(rows) + passes and their blocks)

Times are measured at start on this device; which nodes of the trees get accepted is counted while
serving, from what was counted when they were tuned. "No speculation" is a plan too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drafter.plan import DraftPlan
from tree.topology import RankPath, Tree

from .rows import ROW_CLASS, rows_each

PRIOR_ACCEPTANCE = 0.65  # of a best candidate that was never counted; quartered for each rank
LEARNING_RATE = 0.02  # of a step's outcome in the running estimate
PROBE_STEPS = 64  # a plan that drafts is tried anew after so many plain steps
PROBE_RATIO = 0.8  # if it is predicted to reach so much of plain decoding's speed

Table = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of this device: `forward` by target rows, the rest by drafting sequences.

    `first` is the drafter's first pass, with what feeding back takes; `later` each other pass with
    one block, and `block` each more block in one.
    """

    forward: Table
    first: Table
    later: Table
    block: Table
    row_limit: int | None = None  # rows of one forward; more take several
    fewest_rows: int = ROW_CLASS  # of a forward

    def verify_ms(self, batch: int, rows: int) -> float:
        """The target's part of a step: `batch` sequences with `rows` rows each."""
        if self.row_limit is None:
            return interpolate(self.forward, batch * rows)
        together = max(1, self.row_limit // rows)
        whole, rest = divmod(batch, together)
        verify = whole * interpolate(self.forward, together * rows)
        return verify + interpolate(self.forward, rest * rows) if rest else verify

    def draft_ms(self, batch: int, blocks: Sequence[int], passes: float | None = None) -> float:
        """The drafter's part: so many passes of those with `blocks`, None for all of them, for each
        of `batch` sequences.
        """
        if not batch or not blocks:
            return 0.0
        first, later = interpolate(self.first, batch), interpolate(self.later, batch)
        each = [first, *[later] * (len(blocks) - 1)]
        ms = [
            own + (count - 1) * self.block_ms(batch)
            for own, count in zip(each, blocks, strict=True)
        ]
        if passes is None:
            return sum(ms)
        whole = max(1, int(passes))  # feeding back, which `first` contains, is never partial
        return sum(ms[:whole]) + max(0.0, passes - whole) * sum(ms[whole : whole + 1])

    def block_ms(self, batch: int) -> float:
        """One more block in a pass, for each sequence."""
        return interpolate(self.block, batch)


def interpolate(table: Table, at: int) -> float:
    """Piecewise linear, and in proportion beyond the last measured point."""
    points = sorted(table)
    if at <= points[0]:
        return table[points[0]]
    if at >= points[-1]:
        return table[points[-1]] * at / points[-1]
    high = bisect_left(points, at)
    left, right = points[high - 1], points[high]
    share = (at - left) / (right - left)
    return table[left] * (1 - share) + table[right] * share


def subtrees(tree: Tree, block_size: int, reach: Mapping[RankPath, float]) -> list[Tree]:
    """Parts of a tree worth choosing from: fewer passes, and fewer nodes, the likeliest first.

    Chances fall along a path, so the likeliest nodes of each size are closed under parents.
    """
    found = [Tree.from_paths([])]
    for passes in range(1, -(-tree.max_depth // block_size) + 1):
        paths = [path for path in tree.paths[1:] if len(path) <= passes * block_size]
        paths.sort(key=lambda path: (-reach[path], len(path), path))
        sizes = [size for size in (3, 7, 11, 15, 19) if size < len(paths)]
        found += [Tree.from_paths(closed(paths[:size])) for size in [*sizes, len(paths)]]
    return list(dict.fromkeys(found))


def closed(paths: Iterable[RankPath]) -> list[RankPath]:
    """The paths whose parents and better-ranked siblings are all among them."""
    known: set[RankPath] = {()}
    for path in sorted(paths, key=lambda path: (len(path), path)):
        is_next = path[-1] == 0 or (*path[:-1], path[-1] - 1) in known
        if path[:-1] in known and is_next:
            known.add(path)
    return sorted(known - {()})


class Planner:
    """Chooses among `plans`, of which the first does not draft."""

    def __init__(
        self, plans: Sequence[DraftPlan], costs: Costs, reach: Mapping[RankPath, float]
    ) -> None:
        self.plans = plans
        self.costs = costs
        self.reach = dict(reach)
        # A node's chance once its parent is accepted: known only of nodes that were tried, and
        # learnt apart, so that what a smaller plan shows of the first levels counts for all below.
        self._downwards = sorted(self.reach, key=len)
        self._chance = {
            path: min(1.0, chance / max(self.reach.get(path[:-1], 1.0), 1e-9))
            for path, chance in self.reach.items()
        }
        # Of dynamic plans the tokens and passes of a step are known as a whole, from when they were
        # tuned. `_ease` is what drafts bring now, whatever the plan, over what they brought then.
        self._ease = 1.0
        self._tuned_reach = dict(self.reach)
        dynamic = {plan: plan.dynamic for plan in plans if plan.dynamic is not None}
        self._passes = {plan: own.passes or len(plan.passes) for plan, own in dynamic.items()}
        self._plain_steps = 0

    def tau(self, plan: DraftPlan) -> float:
        """Tokens that a step is expected to give a sequence, the bonus token counted."""
        if plan.dynamic is not None:
            return 1.0 + self._ease * self._tuned(plan)
        return 1.0 + sum(self.reach[path] for path in plan.tree.paths[1:])

    def _tuned(self, plan: DraftPlan) -> float:
        """Drafted tokens of a step when the plan was tuned."""
        if plan.dynamic is not None and plan.dynamic.tau is not None:
            return plan.dynamic.tau - 1.0
        return sum(self._tuned_reach[path] for path in plan.tree.paths[1:])

    def draft_ms(self, plan: DraftPlan, batch: int) -> float:
        """What drafting so is expected to take a batch."""
        return self.costs.draft_ms(batch, plan.blocks, self._passes.get(plan))

    def rate(self, plan: DraftPlan, batch: int) -> float:
        """Predicted tokens per millisecond of the batch."""
        rows = rows_each(plan.num_verified, batch, self.costs.fewest_rows)
        step_ms = self.costs.verify_ms(batch, rows) + self.draft_ms(plan, batch)
        return batch * self.tau(plan) / step_ms

    def choose(self, batch: int) -> DraftPlan:
        """The best plan for so many sequences; now and then one that is only nearly as good."""
        plain, *drafting = self.plans
        chosen = plain
        if drafting:
            best = max(drafting, key=lambda plan: self.rate(plan, batch))
            ratio = self.rate(best, batch) / self.rate(plain, batch)
            if ratio > 1.0 or (ratio > PROBE_RATIO and self._plain_steps >= PROBE_STEPS):
                chosen = best
        self._plain_steps = 0 if chosen.passes else self._plain_steps + 1
        return chosen

    def learn(self, plan: DraftPlan, accepted: Sequence[RankPath], passes: float) -> None:
        """Count one sequence's step: the paths of the plan's tree that were accepted."""
        if (expected := self._tuned(plan)) > 0.0:
            self._ease += LEARNING_RATE * (len(accepted) / expected - self._ease)
        if plan in self._passes:
            self._passes[plan] += LEARNING_RATE * (passes - self._passes[plan])
        # What a dynamic draft left out counts as wrong, for the drafter thought so.
        hits = {(), *accepted}
        for path in plan.tree.paths[1:]:
            if path[:-1] in hits:
                self._chance[path] += LEARNING_RATE * ((path in hits) - self._chance[path])
        for path in self._downwards:
            self.reach[path] = self._chance[path] * self.reach.get(path[:-1], 1.0)


def prior_reach(
    trees: Iterable[Tree], counted: Mapping[RankPath, float] | None = None
) -> dict[RankPath, float]:
    """Each node's chance in a step: what was `counted`, and a guess where nothing was."""
    reach: dict[RankPath, float] = {(): 1.0} | dict(counted or {})
    for path in sorted({path for tree in trees for path in tree.paths[1:]}, key=len):
        guess = reach[path[:-1]] * PRIOR_ACCEPTANCE * 0.5 ** (2 * path[-1])
        reach.setdefault(path, guess)
    del reach[()]
    return reach
