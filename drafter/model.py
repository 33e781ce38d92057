"""The Falcon head (paper §3.1): a mixer along the sequence, then relaxed causal attention + MLP.

    position i     embedding(x_{i+1}) ─┐
                              f_i ─────┴─ mixer (2-layer LSTM) ── h_i ── attention + MLP ── f^_{i+K}

The predicted feature f^_{i+K}, through the target's own head, gives the distribution of x_{i+K+1}.
Inside a block of K positions every position sees the whole block. With K=2 and blocks right-aligned
on position 3:

    sees     0 1 2 3
    row 0    x x . .
    row 1    x x . .
    row 2    x x x x
    row 3    x x x x

Keys and values of every layer are projections of h, so those of a position do not depend on how
positions are grouped into blocks, and committed ones are computed once. Slots of a block may be
coupled (`coupling.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import DrafterConfig
from .coupling import Coupling
from .lstm import PackedLSTM, is_packable

# A step feeds back at most so many positions: the accepted path and the bonus token.
MAX_FED_BACK = 21


@dataclass(frozen=True, slots=True)
class TargetParts:
    """The frozen parts of the target that the drafter borrows.

    `embed` maps ids [...] to embeddings [..., H]; `head` maps features [..., H] to logits [..., V].
    """

    embed: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


class RelaxedLayer(nn.Module):
    """Attention over given keys and values, then a gated MLP; both with a residual."""

    def __init__(self, config: DrafterConfig, has_query: bool) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        if has_query:
            self.attention_norm = nn.LayerNorm(hidden, bias=False)
            self.query = nn.Linear(hidden, hidden, bias=False)
        self.output = nn.Linear(hidden, hidden, bias=False)
        self.mlp_norm = nn.LayerNorm(hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * config.mlp_size, bias=False)
        self.down = nn.Linear(config.mlp_size, hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        query: Tensor | None,
        keys: Tensor,
        values: Tensor,
        rope: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """x, query [B,S,H]; keys (rotated) and values [B,heads,C,D]; rope [B,S,1,2,D], the rows';
        mask [B,1,S,C].
        """
        query = self.query(self.attention_norm(x)) if query is None else query
        query = rotate(query.unflatten(-1, (self.num_heads, -1)), rope).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out


class FalconHead(nn.Module):
    """The drafter's own weights. Ranges over positions and blocks are the callers' business."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.mixer: nn.LSTM | PackedLSTM | nn.Linear
        if config.mixer == "lstm":
            self.mixer = nn.LSTM(2 * hidden, hidden, num_layers=2, batch_first=True)
        else:
            self.mixer = nn.Linear(2 * hidden, hidden)
        self.key_value_norm = nn.LayerNorm(hidden, bias=False)
        self.key_value = nn.Linear(hidden, 2 * config.num_layers * hidden, bias=False)
        self.coupling = Coupling(config) if config.coupled else None
        self.layers = nn.ModuleList(
            RelaxedLayer(config, has_query=number > 0 or not config.coupled)
            for number in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.projection: nn.Linear | None = None
        self.opening: nn.Linear | None = None

    def arrange(self) -> None:
        """Arrange the weights for `LeanHead`, on the device and in the dtype that they have now.

        The head drafts from then on; it can neither be trained nor saved.
        """
        if isinstance(self.mixer, nn.LSTM) and is_packable(self.mixer):
            self.mixer = PackedLSTM(self.mixer)
        if self.projection is None:
            first = self.layers[0]
            assert isinstance(first, RelaxedLayer)
            pairs = [(self.key_value_norm, self.key_value.weight)]
            if (coupling := self.coupling) is None:
                pairs.append((first.attention_norm, first.query.weight))
                del first.attention_norm, first.query
            else:
                self.opening = joint_projection((coupling.norm, coupling.starts_and_queries()))
                del coupling.norm, coupling.start, coupling.query
            self.projection = joint_projection(*pairs)
            del self.key_value_norm, self.key_value

    def keys_values(self, h: Tensor, rope: Tensor) -> Tensor:
        """Rotated keys and values of every layer from h [B,S,H]: [layers,2,B,heads,S,D]."""
        config = self.config
        projected = self.key_value(self.key_value_norm(h)).unflatten(
            -1, (config.num_layers, 2, config.num_heads, config.head_dim)
        )  # [B, S, layers, 2, heads, D]
        keys = rotate(projected[:, :, :, 0], rope.unsqueeze(2))
        return torch.stack((keys, projected[:, :, :, 1]), dim=3).permute(2, 3, 0, 4, 1, 5)

    def read(self, embeddings: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """h [B,S,H] and `keys_values`, of [B,S,H] each: what does not depend on the blocks."""
        x = torch.cat((embeddings, features), dim=-1)  # [B, S, 2H]
        h = self.mixer(x)[0] if isinstance(self.mixer, nn.LSTM) else self.mixer(x)
        return h, self.keys_values(h, self._rope(h))

    def forward(
        self, embeddings: Tensor, features: Tensor, offset: int, told: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced prediction of f_{i+K} for every position: [B,S,H] -> [B,S,H].

        `offset` in 0..K-1 shifts where blocks begin. Coupled slots are told [B,S,K,H]: the
        embeddings of the tokens before x_{i+K+1}, the newest first.
        """
        return self.predict(self.read(embeddings, features), offset, told)

    def predict(
        self, read: tuple[Tensor, Tensor], offset: int, told: Tensor | None = None
    ) -> Tensor:
        """`forward` of what was `read`."""
        h, keys_values = read
        rope = self._rope(h)
        mask = block_mask(h.shape[1], self.config.block_size, offset, self.config.window)
        mask = mask.to(h.device)[None, None]
        x, query = h, None
        if self.coupling is not None:
            assert told is not None
            x, query, ends = self.coupling.begin(h, told, offset)
            rope = rope[:, ends]
        for layer, (keys, values) in zip(self.layers, keys_values, strict=True):
            x, query = layer(x, query, keys, values, rope, mask), None
        predicted: Tensor = self.norm(x)
        return predicted

    def _rope(self, h: Tensor) -> Tensor:
        """Of positions 0 to S-1, for h [B,S,H]."""
        return rope_table(torch.arange(h.shape[1], device=h.device), self.config)[None]


def joint_projection(*pairs: tuple[nn.LayerNorm, Tensor]) -> nn.Linear:
    """Products of one normed input as one layer, the weights of their norms within its own."""
    weights = [weight.float() * norm.weight.float() for norm, weight in pairs]
    weight = torch.cat(weights).to(pairs[0][1].dtype).detach()
    joint = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joint.weight = nn.Parameter(weight, requires_grad=False)
    return joint


def rope_table(positions: Tensor, config: DrafterConfig) -> Tensor:
    """Cosines and sines for `rotate`: positions [...] -> [..., 1, 2, D] float32."""
    half = config.head_dim // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = positions[..., None].float() * config.rope_theta**-exponents  # [..., D/2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), -2).unsqueeze(-3)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary position embedding: x [..., heads, D], rope [..., 1, 2, D]."""
    cos, sin = rope.to(x.dtype).unbind(-2)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def block_mask(length: int, block_size: int, offset: int, window: int | None) -> Tensor:
    """[S,S] bool: a row sees every column of its own block and of those before it.

    K=2, offset 0     K=2, offset 1
    x x . .           x . . .
    x x . .           x x x .
    x x x x           x x x .
    x x x x           x x x x
    """
    positions = torch.arange(length)
    block = (positions + offset) // block_size
    mask = block[None, :] <= block[:, None]
    if window is not None:
        mask &= positions[:, None] - positions[None, :] < window
    return mask
