"""Which nodes of a draft are worth verifying: those whose whole path the drafter trusts most.

As EAGLE-2 (arXiv:2406.16858) ranks its drafts: by the product of the drafter's probabilities down
to a node. A parent is never less likely than its child, so what is kept is a tree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drafter.plan import DraftPlan

# Taken off at each level, so that a child never ties with its parent.
LEVEL_COST = 1e-3


class Selector:
    """For one draft: called after each of its passes, as `drafter.protocol.Mend`."""

    def __init__(self, plan: DraftPlan, batch: int) -> None:
        self._plan = plan
        device = plan.offsets.device
        self._own = torch.zeros(batch, plan.tree.num_nodes, device=device)

    def __call__(self, logits: Tensor, tokens: Tensor, number: int) -> None:
        """Note how likely each token [B,N] is that pass `number` named by logits [B,E,K,V]."""
        tables = self._plan.passes[number]
        chances = logits.flatten(1, 2)[:, tables.named_by].float().log_softmax(-1)  # [B, M, V]
        named = tokens[:, tables.nodes].unsqueeze(-1)
        self._own[:, tables.nodes] = chances.gather(-1, named).squeeze(-1) - LEVEL_COST

    def best(self) -> Tensor:
        """The nodes that each sequence verifies, ascending, the root first: [B,n] int64."""
        joint = self._own @ self._plan.ancestors.T  # [B, N]; 0 for the root, the most there is
        return joint.topk(self._plan.num_verified).indices.sort().values
