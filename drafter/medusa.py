"""Medusa (Cai et al. 2024, arXiv:2401.10774): heads on the target's newest feature, one a level.

    f_i ── head 0 ── x_{i+2}        x_{i+1} is the root, which f_i named
      ├─── head 1 ── x_{i+3}
      └─── head 2 ── x_{i+4}

One pass names the whole tree. The heads do not see each other: what one proposes does not depend on
what another did. They are verified by the target's own pick, as every draft here, not by the
paper's typical acceptance, which changes answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import MedusaConfig
from .index import index_of
from .plan import DraftPlan
from .protocol import Guess, Mend, Rank, name_nodes


class MedusaBranch(nn.Module):
    """One head: residual layers and an output layer, [...,H] -> [...,V]."""

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(config.num_layers))
        self.output = nn.Linear(hidden, config.vocab_size, bias=False)
        for layer in self.layers:  # at first the features pass as they are
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]  # of a Linear
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers:
            features = features + F.silu(layer(features))
        logits: Tensor = self.output(features)
        return logits


class MedusaHead(nn.Module):
    """The drafter's own weights."""

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__()
        self.config = config
        self.branches = nn.ModuleList(MedusaBranch(config) for _ in range(config.block_size))

    @torch.no_grad()
    def start_from(self, output: Tensor) -> None:
        """Begin with the target's output weights [V,H]: every head then repeats the root."""
        for branch in self.branches:
            assert isinstance(branch, MedusaBranch)
            branch.output.weight.copy_(output)

    def forward(self, features: Tensor) -> Tensor:
        """Features [...,H] to the logits of all heads [...,K,V]."""
        return torch.stack([branch(features) for branch in self.branches], dim=-2)


class MedusaDrafter:
    """Medusa heads with slots: each holds its newest feature."""

    takes_guesses = False

    def __init__(self, head: MedusaHead, num_slots: int, like: Tensor) -> None:
        """`like` is a tensor on the weights' device and in their dtype."""
        self.head = head
        self.block_size = head.config.block_size
        self.lengths = [0] * num_slots
        self.newest = like.new_zeros(num_slots, head.config.hidden_size)

    @property
    def num_bytes(self) -> int:
        """Of the newest features."""
        return int(self.newest.nbytes)

    def reset(self, slot: int) -> None:
        """Forget the slot's sequence."""
        self.lengths[slot] = 0
        self.newest[slot] = 0

    def adopt(self, slot: int, source: int, length: int) -> None:
        """The newest of the first positions of `source` is left out, for `prefill` to read."""
        self.lengths[slot] = max(0, min(length, self.lengths[source]) - 1)
        self.newest[slot] = 0

    def rewind(self, slot: int, length: int) -> None:
        """Forget the slot's positions from `length` on, and the one before."""
        self.adopt(slot, slot, length)

    def prefill(self, slot: int, ids: Tensor, features: Tensor) -> None:
        """Read S more positions, of which only the newest feature counts: ids [S+1], [S,H]."""
        self.lengths[slot] += len(features)
        self.newest[slot] = features[-1]

    def extend(
        self, slots: Sequence[int], tokens: Tensor, features: Tensor, counts: Sequence[int]
    ) -> None:
        """Read `counts[b]` >= 1 positions of each slot: tokens [B,A], features [B,A,H]."""
        last = torch.tensor(counts, device=features.device) - 1
        rows = torch.arange(len(counts), device=features.device)
        self.newest[index_of(slots, features.device)] = features[rows, last].to(self.newest.dtype)
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count

    def draft(
        self,
        slots: Sequence[int],
        roots: Tensor,
        plan: DraftPlan,
        rank: Rank,
        mend: Mend | None = None,
        guess: Guess | None = None,
    ) -> Tensor:
        """Name every node of the plan's tree for each slot: roots [B] -> tokens [B,N]."""
        tokens = F.pad(roots[:, None], (0, plan.tree.num_nodes - 1))
        logits = self.head(self.newest[index_of(slots, roots.device)])[:, None]  # [B, 1, K, V]
        name_nodes(tokens, logits, plan.passes[0].whole, rank, mend)
        return tokens
