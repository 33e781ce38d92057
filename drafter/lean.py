"""The Falcon head for drafting: the mathematics of `model.py` in as few operations as it takes.

A pass has few rows, so its time is the number of its operations more than their work, and a call
of an `nn.Module` costs as much as a small operation. These are plain functions over the weights
that `FalconHead.arrange` laid out. Keys, values and the first layer's queries are all projections
of h and come from one product:

    h ── norm ── projection ── k v of layer 0, k v of layer 1, ..., q of layer 0
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .lstm import PackedLSTM
from .model import FalconHead, RelaxedLayer, rotate

Product = Callable[[Tensor], Tensor]


class LeanLayer:
    """One layer of a head. The first has no `query`: its queries are projections of h."""

    def __init__(self, layer: RelaxedLayer, is_first: bool) -> None:
        self.query = None if is_first else normed(layer.attention_norm, layer.query)
        self.output = layer.output.forward
        self.gate_up = normed(layer.mlp_norm, layer.gate_up)
        self.down = layer.down.forward

    def __call__(
        self,
        x: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        summary: Tensor | None,
    ) -> Tensor:
        """x [B,S,H]; queries [B,S,heads,D]; keys, values [B,heads,C,D]; bias [B,1,S,C]; summary
        [B,S,H].
        """
        mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, bias)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        x = x if summary is None else x.add_(summary)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return x + self.down(F.silu(gate).mul_(up))


class LeanHead:
    """A head that was arranged, and whose linear layers may have been packed since."""

    def __init__(self, head: FalconHead) -> None:
        if head.projection is None:
            raise ValueError("the head is not arranged for drafting; call its arrange() first")
        layers = [layer for layer in head.layers if isinstance(layer, RelaxedLayer)]
        self.config = head.config
        self.mixer = head.mixer
        self.projection = head.projection.forward
        self.summary = None if head.summary is None else head.summary.forward
        self.layers = [LeanLayer(layer, layer is layers[0]) for layer in layers]
        self.norm_weight, self.norm_bias = head.norm.weight, head.norm.bias

    def initial_state(self, batch: int) -> Tensor:
        """The mixer's state before position 0: [2 (h, c), layers, B, H], no layers if linear."""
        layers = 2 if self.config.mixer == "lstm" else 0
        return self.norm_weight.new_zeros(2, layers, batch, self.config.hidden_size)

    def mix(self, embeddings: Tensor, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run the mixer over S positions, [B,S,H] each, from `state` on: h [B,S,H], state after."""
        x = torch.cat((embeddings, features), dim=-1)  # [B, S, 2H]
        if isinstance(self.mixer, PackedLSTM):
            return self.mixer.forward(x, state)
        if isinstance(self.mixer, nn.LSTM):
            h, last = self.mixer(x, (state[0].contiguous(), state[1].contiguous()))
            return h, torch.stack(last)
        return self.mixer.forward(x), state

    def project(self, h: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """What attention needs of h [B,S,H], queries and keys rotated by rope [B,S,1,2,D].

        Gives the first layer's queries [B,S,heads,D] and keys and values
        [layers,2,B,heads,S,D].
        """
        product = self.projection(F.layer_norm(h, h.shape[-1:]))
        parts = product.view(*h.shape[:2], -1, self.config.num_heads, self.config.head_dim)
        turned = rotate(parts[:, :, ::2], rope.unsqueeze(2))  # keys and, last, the queries
        keys_values = torch.stack((turned[:, :, :-1], parts[:, :, 1::2]), dim=3)
        return turned[:, :, -1], keys_values.permute(2, 3, 0, 4, 1, 5)

    def predict(
        self, h: Tensor, queries: Tensor, keys_values: Tensor, rope: Tensor, bias: Tensor
    ) -> Tensor:
        """Predicted features [B,S,H] of rows h [B,S,H], whose queries `project` gave, over
        keys_values [layers,2,B,heads,C,D] with bias [B,1,S,C].
        """
        x, summary = h, None
        if self.summary is not None:
            ends = h[:, self.config.block_size - 1 :: self.config.block_size]  # [B, S/K, H]
            summary = self.summary(ends).view(h.shape)
        for layer, (keys, values) in zip(self.layers, keys_values, strict=True):
            if layer.query is not None:
                queries = rotate(layer.query(x).view(queries.shape), rope)
            x, summary = layer(x, queries, keys, values, bias, summary), None
        return F.layer_norm(x, x.shape[-1:], self.norm_weight, self.norm_bias)


def normed(norm: nn.LayerNorm, linear: nn.Linear) -> Product:
    """A linear layer of the normed input."""
    shape, weight, product = norm.normalized_shape, norm.weight, linear.forward
    return lambda x: product(F.layer_norm(x, shape, weight))
