"""Drafts whose shape follows the drafter's trust: how deep one goes, and which nodes are verified.

As EAGLE-2 (arXiv:2406.16858) ranks its drafts: by the product of the chances down to a node. A
parent is never less likely than its child, so what is kept is a tree. The sum over the nodes that a
draft would go on from is the chance that going on is of any use.

All of it runs on the host: a level has few nodes, and the walk down the tree needs them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

from torch import Tensor

from drafter.config import Dynamic
from drafter.naming import Naming

WORST = -50.0  # the log chance of a token that may not be picked


class Selector:
    """For one draft of `batch` sequences.

    Chances are those of the tokens that the drafter named: where a grammar has them replaced
    (`mending.py`), the replacements keep them.
    """

    def __init__(self, dynamic: Dynamic, batch: int) -> None:
        self.passes = 0.0  # that were run, the last one by its share of levels
        self._dynamic = dynamic
        self._onward: tuple[int, ...] = ()
        self._joint: list[dict[int, float]] = [{0: 0.0} for _ in range(batch)]
        self._heard: list[list[list[float]]] = []

    @property
    def sharpness(self) -> float:
        return self._dynamic.sharpness

    def hear(self, log_chances: Tensor) -> None:
        """Take what candidates were given, [B,E,L,width], of which `note` tells the nodes."""
        self._heard = log_chances.flatten(1, 2).tolist()  # sync: see above

    def note(self, naming: Naming, num_rows: int) -> None:
        """The first rows of those heard, and not noted yet, were those of a naming's [E,L]."""
        for joint, rows in zip(self._joint, self._heard, strict=True):
            for family in naming.families:
                above = joint[family.parent]
                for child, chance in zip(family.children, rows[family.row], strict=False):
                    joint[child] = above + max(WORST, chance)  # WORST where chance is nan
            del rows[:num_rows]
        self.passes = naming.number + naming.share
        self._onward = naming.onward

    def goes_on(self) -> bool:
        """Whether naming more is worth its time, for all sequences together."""
        trust = sum(exp(joint[end]) for joint in self._joint for end in self._onward)
        return trust >= self._dynamic.least_trust * len(self._joint)

    def best(self, counts: Sequence[int]) -> list[list[int]]:
        """So many nodes for each sequence to verify, or all it has: ascending, the root first."""
        return [
            sorted(sorted(joint, key=joint.__getitem__, reverse=True)[:count])
            for joint, count in zip(self._joint, counts, strict=True)
        ]
