"""Drafts whose shape follows the drafter's trust: how deep one goes, and which nodes are verified.

As EAGLE-2 (arXiv:2406.16858) ranks its drafts: by the product of the chances down to a node. A
parent is never less likely than its child, so what is kept is a tree. The sum over the nodes that a
pass would go on from is the chance that it is of any use.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drafter.config import Dynamic
from drafter.naming import Naming
from drafter.plan import DraftPlan

# Log chances. `LEVEL_COST` is taken off at each level, so that a child never ties with its parent;
# whole paths of the worst tokens stay above `UNNAMED`, and far enough from it for float32.
LEVEL_COST = 1e-3
WORST = -50.0
UNNAMED = -1e6


class Selector:
    """For one draft of `batch` sequences.

    Chances are those of the tokens that the drafter named: where a grammar has them replaced
    (`mending.py`), the replacements keep them.
    """

    def __init__(self, plan: DraftPlan, dynamic: Dynamic, batch: int) -> None:
        self.passes = 0  # that were run
        self._is_between = True  # two passes
        self.sharpness = dynamic.sharpness
        self._plan, self._least_trust = plan, dynamic.least_trust
        self._named = 1
        shape = batch, plan.tree.num_nodes
        self._chances = torch.full(shape, UNNAMED, device=plan.offsets.device)
        self._chances[:, 0] = 0.0

    def note(self, log_chances: Tensor, naming: Naming) -> None:
        """Take what a naming's candidates were given: [B,E,L,width]."""
        own = log_chances.flatten(1)[:, naming.candidates]  # [B, M]
        self._chances[:, naming.nodes] = own.nan_to_num(nan=WORST).clamp(min=WORST) - LEVEL_COST
        self._named += own.shape[1]
        self.passes = naming.number + 1
        self._is_between = naming.ends_pass

    def goes_on(self) -> bool:
        """Whether the next pass is worth its time, for all sequences together."""
        is_last = self.passes == len(self._plan.passes)
        if not self._least_trust or is_last or not self._is_between:
            return True
        ends = self._plan.passes[self.passes].ends
        trust = self._joint(self._plan.ancestors[ends]).exp().sum(-1).mean()
        return bool(trust >= self._least_trust)  # sync: cheaper than a pass

    def best(self) -> Tensor:
        """The nodes that each sequence verifies, ascending, the root first: [B,n] int64."""
        count = min(self._plan.num_verified, self._named)
        return self._joint(self._plan.ancestors).topk(count).indices.sort().values

    def _joint(self, ancestors: Tensor) -> Tensor:
        """Log chances [B,M] of whole paths [M,N]."""
        return self._chances @ ancestors.T
