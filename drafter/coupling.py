"""Coupled slots: each is told what the one before named (our addition to the paper's head).

The paper's slots guess side by side: the second does not know which token the first was given.
Coupled ones begin from the last position of their block, each by a product of its own, and from
the second on the tokens named since are told to the MLP that all of them share:

    h_end ─┬─ slot 0: start, query ── attention ── MLP ── f^ ── x
           └─ slot 1: start, query ── attention ── MLP ── f^    │
                                                    └── told ───┘

Attention, and all else that reads the sequence, is still one pass for the whole block.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .config import DrafterConfig

QUERIES = ("layers.0.attention_norm.weight", "layers.0.query.weight")  # not of coupled slots


class Coupling(nn.Module):
    """The weights that coupled slots have and others have not."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, 2 * config.mlp_size
        self.block_size = config.block_size
        self.norm = nn.LayerNorm(hidden, bias=False)
        self.start = nn.Linear(hidden, config.block_size * hidden, bias=False)
        self.query = nn.Linear(hidden, config.block_size * hidden, bias=False)
        self.told = nn.Linear(hidden, width, bias=False)
        self.fading = nn.Parameter(torch.full((width,), 0.3))  # of older tokens
        self.table: Tensor | None = None  # what is told of each token of the vocabulary [V,2M]
        nn.init.zeros_(self.start.weight)
        nn.init.normal_(self.told.weight, std=0.02)

    def queries_and_starts(self) -> Tensor:
        """Their weights, slot by slot: query 0, start 0, query 1, ... [2*K*H,H]."""
        pairs = zip(
            self.query.weight.chunk(self.block_size),
            self.start.weight.chunk(self.block_size),
            strict=True,
        )
        return torch.cat([weight for pair in pairs for weight in pair])

    def begin(self, h: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the rows of all slots begin with, and their queries: h [B,S,H] -> [B,S,H] both; and
        the last position of each one's block [S].
        """
        blocks, slots = self._places(h, offset)
        ends = block_ends(h.shape[1], self.block_size, offset).to(h.device)
        h_ends = h[:, ends]
        normed = self.norm(h_ends)
        start, query = (
            product(normed).unflatten(-1, (self.block_size, -1))[:, blocks, slots]
            for product in (self.start, self.query)
        )
        return h_ends[:, blocks] + start, query, ends[blocks]

    def tell(self, words: Tensor, offset: int) -> Tensor:
        """What the MLP is told of words [B,S,K-1,H], at each position newest first: [B,S,2M]."""
        _, slots = self._places(words, offset)
        told = words.new_zeros(*words.shape[:2], self.fading.shape[0])
        for back in range(self.block_size - 1):
            is_own = (slots > back)[:, None]  # the word was named by a slot of the same block
            told = told + self.fading**back * self.told(words[:, :, back]) * is_own
        return told

    def _places(self, like: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        """Block and slot of each position: like [B,S,...] -> [S] both."""
        places = torch.arange(like.shape[1], device=like.device) + offset
        return places // self.block_size, places % self.block_size


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
