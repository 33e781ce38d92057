"""Coupled slots: each is told what the ones before it named (our addition to the paper's head).

The paper's slots guess side by side: the second does not know which token the first was given.
Coupled ones begin and ask attention by products of the last position of their block, one for each
slot, and of the newest tokens: the root of the block and those that were named since.

    h_end, x_root        ── slot 0: start, query ── attention ── MLP ── f^ ── x_1
    h_end, x_root, x_1   ── slot 1: start, query ── attention ── MLP ── f^ ── x_2

What attention looks at, and all else that reads the sequence, is made once for the whole block.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import DrafterConfig

QUERIES = ("layers.0.attention_norm.weight", "layers.0.query.weight")  # not of coupled slots


class Coupling(nn.Module):
    """The weights that coupled slots have and others have not."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        hidden, self.block_size = config.hidden_size, config.block_size
        self.norm = nn.LayerNorm(hidden, bias=False)
        self.start = nn.Linear(hidden, self.block_size * hidden, bias=False)
        self.query = nn.Linear(hidden, self.block_size * hidden, bias=False)
        self.told = nn.ModuleList(  # of slot s: the s + 1 newest tokens, start and query
            nn.Linear((slot + 1) * hidden, 2 * hidden, bias=False)
            for slot in range(self.block_size)
        )
        # Made and read by `Telling`, [K*(K+1)/2*V,2H]; here, because a head is fitted to new trees.
        self.table: Tensor | None = None
        for weight in (self.start.weight, *self.told.parameters()):
            nn.init.zeros_(weight)

    def starts_and_queries(self) -> Tensor:
        """Their weights, slot by slot: start 0, query 0, start 1, ... [K*2*H,H]."""
        weights = (self.start.weight, self.query.weight)
        by_slot = [weight.view(self.block_size, -1, weight.shape[-1]) for weight in weights]
        return torch.stack(by_slot, dim=1).flatten(0, 2)

    def begin(self, h: Tensor, told: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the rows of all slots begin with, and their queries, [B,S,H] both; and the last
        position of each one's block [S]. Of h [B,S,H] and `told` [B,S,K,H], at each position the
        embeddings of the newest tokens, newest first.
        """
        places = torch.arange(h.shape[1], device=h.device) + offset
        blocks, slots = places // self.block_size, places % self.block_size
        ends = block_ends(h.shape[1], self.block_size, offset).to(h.device)
        normed = self.norm(h[:, ends])
        start, query = (
            product(normed).unflatten(-1, (self.block_size, -1))[:, blocks, slots]
            for product in (self.start, self.query)
        )
        told_start, told_query = self._tell(told, offset).chunk(2, dim=-1)
        own_ends = ends[blocks]
        return h[:, own_ends] + start + told_start, query + told_query, own_ends

    def _tell(self, told: Tensor, offset: int) -> Tensor:
        """Of told [B,S,K,H] what the slot of each position is to know: [B,S,2H]."""
        words = as_told(told)
        known = self.query.weight.new_zeros(*words.shape[:2], 2 * words.shape[-1])
        for slot, product in enumerate(self.told):
            own = slice((slot - offset) % self.block_size, None, self.block_size)
            known[:, own] = product(words[:, own, : slot + 1].flatten(2)).to(known.dtype)
        return known


def as_told(embeddings: Tensor) -> Tensor:
    """Embeddings [...,H] brought to one size, for from small ones a head learns slowly."""
    whole = F.layer_norm(embeddings.float(), embeddings.shape[-1:], eps=1e-12)
    return whole.to(embeddings.dtype)


def block_ends(length: int, block_size: int, offset: int) -> Tensor:
    """The last position of each block.

    K=2, offset 1     positions   0 | 1 2 | 3 4 | 5      ends 0 2 4 5
    """
    count = (length - 1 + offset) // block_size + 1
    ends = torch.arange(1, count + 1) * block_size - 1 - offset
    return ends.clamp(max=length - 1)


def coupled_weights(weights: Mapping[str, Tensor], block_size: int) -> dict[str, Tensor]:
    """Weights of a head whose coupled slots all guess as the one slot of `weights` does, but for
    what they are told.
    """
    norm, query = (weights[name] for name in QUERIES)
    grown = {name: tensor for name, tensor in weights.items() if name not in QUERIES}
    grown["coupling.norm.weight"] = norm
    grown["coupling.query.weight"] = query.repeat(block_size, 1)
    return grown
