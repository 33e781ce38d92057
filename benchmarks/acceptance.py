"""How often the target picks the drafter's candidate, by depth in the tree and rank at its parent.

Measured on a caterpillar: the chain of best candidates, each with its siblings. At every node of
the chain that a step visits, the rank of the target's pick among the children is counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from drafter.heads import AnyHead
from drafter.plan import DraftPlan, build_plan
from drafter.protocol import Drafter
from engine.drafters import fit_drafter
from engine.engine import Engine
from engine.outcome import Accepted, StepOutput
from engine.sampling import Sampler
from engine.sequence import Sequence as RunningSequence
from engine.speculative import SpeculativeDecoder
from engine.target import Target
from tree.search import Acceptance
from tree.topology import MAX_NODES, RankPath, Tree

from .methods import EngineMethod, Task

PRIOR_STEPS = 8.0  # a depth counts so many steps of the depth above it besides its own


class CountingDecoder(SpeculativeDecoder):
    """Counts, at each visited node of a caterpillar's chain, the rank of the target's pick."""

    def __init__(self, target: Target, drafter: Drafter, plan: DraftPlan, sampler: Sampler) -> None:
        super().__init__(target, drafter, plan, sampler)
        self.max_provisional = 0  # the next step's tree is then the plan's own
        depth, width = plan.tree.max_depth, max(plan.tree.ranks) + 1
        self.visits = [0] * depth
        self.hits = [[0] * width for _ in range(depth)]

    def step(self, sequences: Sequence[RunningSequence], plan: DraftPlan) -> StepOutput:
        """A step as usual, counted."""
        output = super().step(sequences, plan)
        for path in output.accepted:
            self._count(path)
        return output

    def _count(self, path: Accepted) -> None:
        """The last node may be a sibling of the chain, a leaf; the pick after it is not counted."""
        tree = self.plan.tree
        ranks = [tree.ranks[node] for node in path.walk.nodes]
        for depth, rank in enumerate(ranks):
            self.visits[depth] += 1
            self.hits[depth][rank] += 1
        if len(ranks) < tree.max_depth and not any(ranks):
            self.visits[len(ranks)] += 1


def caterpillar(depth: int, max_nodes: int = MAX_NODES) -> Tree:
    """A chain of best candidates, each with as many siblings as fit; depth 2 with 7 nodes:

    root ─┬─ 0 ─┬─ 0
          ├─ 1  ├─ 1
          └─ 2  └─ 2
    """
    width = (max_nodes - 1) // depth
    chain: list[RankPath] = [(0,) * above for above in range(depth)]
    return Tree.from_paths((*above, rank) for above in chain for rank in range(width))


def count_acceptance(
    engine: Engine,
    head: AnyHead,
    depth: int,
    prompts: Sequence[Sequence[int]],
    task: Task,
) -> Acceptance:
    """Chances down to `depth`, given that the path above was accepted, on answers to `prompts`."""
    tree = caterpillar(depth)
    plan = build_plan(tree, head.config.block_size, engine.target.device)
    drafter = fit_drafter(head, plan, engine.target, num_slots=1)
    decoder = CountingDecoder(engine.target, drafter, plan, engine.decoder.sampler)
    method = EngineMethod("count", Engine(engine.target, decoder, max_num_seqs=1), task)
    for prompt in prompts:
        method.generate(prompt)
    return smoothed(decoder.visits, decoder.hits)


def smoothed(visits: Sequence[int], hits: Sequence[Sequence[int]]) -> list[list[float]]:
    """Rates with the depth above as a prior: deep nodes are visited too seldom to stand alone."""
    above = [0.5 / (rank + 1) ** 2 for rank in range(len(hits[0]))]
    rates: list[list[float]] = []
    for visited, row in zip(visits, hits, strict=True):
        weight = visited + PRIOR_STEPS
        above = [
            (hit + PRIOR_STEPS * prior) / weight for hit, prior in zip(row, above, strict=True)
        ]
        above = sorted(above, reverse=True)  # rarely out of order, by chance alone
        rates.append(above)
    return rates
