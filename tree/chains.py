"""What a dynamic draft would have come to: decoding played again over a record of top-1 chains.

The draft is the drafter's top-1 chain, as deep as it is trusted, and siblings of its nodes: those
paths are verified that are likeliest as a whole (`engine/selection.py`). What the drafter names at
a place depends, but for rounding, on the text before it alone, so one look at each place tells what
every draft gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from .replay import Replay
from .topology import Tree


@dataclass(frozen=True, slots=True)
class Place:
    """The chain that the drafter names where a step has its root: `chances` are the logs of those
    of each level's candidates, best first. `right` levels are what really follows, and then the
    candidate `rank`, if that is one.
    """

    chances: Sequence[Sequence[float]]
    right: int
    rank: int | None


@dataclass(frozen=True, slots=True)
class ChainDraft:
    """Up to `depth` levels of `width` candidates, `at_once` of them named together.

    `num_verified` nodes are kept, the root and provisional tokens among them; no level is named
    after one whose chain is right with a chance below `least_trust`, the mean of all sequences.
    """

    depth: int
    width: int
    at_once: int
    num_verified: int
    least_trust: float

    @property
    def tree(self) -> Tree:
        """All nodes that it may have."""
        return Tree.from_paths(
            (*(0,) * level, rank) for level in range(self.depth) for rank in range(self.width)
        )


@dataclass(slots=True)
class _Running:
    record: Sequence[Place]
    place: int = 0
    again: int = 0  # tokens before `place` that are provisional
    trust: float = 0.0  # log chance of the chain so far

    @property
    def is_done(self) -> bool:
        return self.place - self.again >= len(self.record)

    @property
    def now(self) -> Place:
        """Behind the end of the answer nothing is right."""
        at = min(self.place, len(self.record) - 1)
        return self.record[at] if at == self.place else Place(self.record[at].chances, 0, None)


def replay_chains(
    draft: ChainDraft,
    records: Sequence[Sequence[Place]],
    batch: int,
    block_size: int,
    max_provisional: int,
) -> Replay:
    """Decode every answer, `batch` at a time. `max_provisional` as for `tree.replay.replay`."""
    waiting = [_Running(record) for record in reversed(records) if record]
    running: list[_Running] = []
    rows: Counter[int] = Counter()
    passes = 0.0
    while waiting or running:
        while waiting and len(running) < batch:
            running.append(waiting.pop())
        levels = _levels(draft, running)
        for one in running:
            rows[_step(draft, one, levels, max_provisional)] += 1
        passes += len(running) * _passes(draft, levels, block_size)
        running = [one for one in running if not one.is_done]
    tokens = sum(len(record) for record in records)
    return Replay(tokens, Counter(), rows, passes / rows.total())


def _levels(draft: ChainDraft, running: Sequence[_Running]) -> int:
    """How many are named for all sequences together."""
    for one in running:
        one.trust = 0.0
    for level in range(draft.depth):
        for one in running:
            one.trust += one.now.chances[level][0]
        is_end = (level + 1) % draft.at_once == 0
        trust = sum(exp(one.trust) for one in running) / len(running)
        if is_end and trust < draft.least_trust:
            return level + 1
    return draft.depth


def _step(draft: ChainDraft, one: _Running, levels: int, max_provisional: int) -> int:
    """Take a sequence on; how many rows that verified."""
    now, above = one.now, 0.0
    nodes: list[tuple[float, int, int]] = []  # joint log chance, level, rank
    for level in range(levels):
        own = now.chances[level]
        nodes += [(above + own[rank], level, rank) for rank in range(draft.width)]
        above += own[0]
    nodes.sort(key=lambda node: -node[0])
    kept = {node[1:] for node in nodes[: max(1, draft.num_verified - one.again - 1)]}
    rows = one.again + 1 + len(kept)
    chain = 0
    while chain < now.right and (chain, 0) in kept:
        chain += 1
    branched = chain == now.right and now.rank is not None and (chain, now.rank) in kept
    one.again = int(branched and max_provisional > 0)
    one.place += 1 + chain + one.again
    return rows


def _passes(draft: ChainDraft, levels: int, block_size: int) -> float:
    """The last one by its share of levels."""
    whole = (levels - 1) // block_size
    return whole + (levels - whole * block_size) / min(block_size, draft.depth - whole * block_size)
