"""What a tree would have come to: decoding played again over a record of the drafter's ranks.

What the drafter names at a place depends on the text before that place alone, but for rounding: not
on the tree, nor on the steps that led there. So one look at each place of an answer tells what
every tree gives.

A record has an entry for each token of an answer: where a step has its root right before that
token, the ranks of this and the following tokens among the candidates, each named with all before
it right, up to the first that is no candidate.

    place      0        1       2      3        tokens 0 to 3 of an answer follow the prompt
    record  (0, 1)  (1, 0, 0)   ()    (0,)      token 2 was missed from place 0, named from place 1

The tree of paths (0,), (0, 0), (1,) accepts token 0 at place 0 and gets token 1 from the target;
it names nothing at place 2, and accepts token 3: four tokens in three steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .topology import RankPath, Tree

Record = Sequence[RankPath]


@dataclass(frozen=True, slots=True)
class Replay:
    """The steps of a tree over some answers of `tokens` tokens in all.

    `roots` counts the steps by their entry in the record; `rows` by how many rows they verified,
    with the tokens that were verified once more in front of the draft. A step had so many `passes`,
    or all that its tree has.
    """

    tokens: int
    roots: Counter[RankPath]
    rows: Counter[int]
    passes: float | None = None

    @property
    def steps(self) -> int:
        return self.rows.total()

    @property
    def tau(self) -> float:
        """Tokens a step, the target's own counted."""
        return self.tokens / self.steps


def replay(tree: Tree, records: Iterable[Record], max_provisional: int) -> Replay:
    """Decode every answer with `tree`.

    `max_provisional` is how many tokens picked off the top-1 chain the next step can verify again.
    """
    nodes = set(tree.paths)
    roots: Counter[RankPath] = Counter()
    rows: Counter[int] = Counter()
    tokens = 0
    for record in records:
        tokens += len(record)
        for place, again in _steps(nodes, record, max_provisional):
            roots[record[place] if place < len(record) else ()] += 1
            rows[tree.num_nodes + again] += 1
    return Replay(tokens, roots, rows)


def _steps(nodes: set[RankPath], record: Record, max_provisional: int) -> Iterator[tuple[int, int]]:
    """The place of each step's root, and how many tokens in front of it are provisional."""
    place = again = 0
    while place - again < len(record):
        yield place, again
        path = followed(nodes, record[place]) if place < len(record) else ()
        chain = next((depth for depth, rank in enumerate(path) if rank), len(path))
        again = min(len(path) - chain, max_provisional)
        place += 1 + chain + again


def followed(nodes: set[RankPath], ranks: RankPath) -> RankPath:
    """How far into the tree `ranks` lead."""
    depth = 0
    while depth < len(ranks) and ranks[: depth + 1] in nodes:
        depth += 1
    return ranks[:depth]


def shares(roots: Mapping[RankPath, int]) -> dict[RankPath, float]:
    """The share of steps in which each path was right: what a node there would be accepted."""
    counts: Counter[RankPath] = Counter()
    for ranks, count in roots.items():
        for depth in range(1, len(ranks) + 1):
            counts[ranks[:depth]] += count
    steps = sum(roots.values())
    return {path: count / steps for path, count in counts.items()}
