"""The Falcon head for drafting: the mathematics of `model.py` in as few operations as it takes.

A pass has few rows, so its time is the number of its operations more than their work, and a call
of an `nn.Module` costs as much as a small operation. These are plain functions over the weights
that `FalconHead.arrange` laid out. Keys, values and the first layer's queries are all projections
of h and come from one product, as do queries and starts of coupled slots:

    h ── norm ── projection ── k v of layer 0, k v of layer 1, ..., q of layer 0
                                                               or q s of slot 0, q s of slot 1, ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .coupling import Coupling
from .lstm import PackedLSTM
from .model import FalconHead, RelaxedLayer, rotate

Product = Callable[[Tensor], Tensor]
TOLD_BYTES = 1 << 26  # a larger table of what coupled slots are told is not kept


class LeanLayer:
    """One layer of a head. The first has no `query`: its queries are projections of h."""

    def __init__(self, layer: RelaxedLayer, is_first: bool) -> None:
        self.query = None if is_first else normed(layer.attention_norm, layer.query)
        self.output = layer.output.forward
        self.gate_up = normed(layer.mlp_norm, layer.gate_up)
        self.down = layer.down.forward

    def attend(
        self, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Tensor:
        """x [B,S,H]; queries [B,S,heads,D]; keys, values [B,heads,C,D]; bias [B,1,S,C]."""
        mixed = F.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, bias)
        return x + self.output(mixed.transpose(1, 2).flatten(2))

    def mlp(self, x: Tensor) -> Tensor:
        return self.close(x, self.gate_up(x))

    def close(self, x: Tensor, inner: Tensor) -> Tensor:
        """x [...,H] behind the MLP, of whose first product `inner` [...,2M] came."""
        gate, up = inner.chunk(2, dim=-1)
        return x + self.down(F.silu(gate).mul_(up))


@dataclass(frozen=True, slots=True)
class Projected:
    """What attention needs of h [B,S,H]: `keys_values` [layers,2,B,heads,S,D], and the first
    layer's `queries` [B,S,1,heads,D], or [B,S,K,heads,D] for all slots where these are coupled.

    `starts` [B,S,K,H] is what coupled slots add to h; [B,S,0,H] for others.
    """

    keys_values: Tensor
    queries: Tensor
    starts: Tensor


class LeanHead:
    """A head that was arranged, and whose linear layers may have been packed since."""

    def __init__(self, head: FalconHead) -> None:
        if head.projection is None:
            raise ValueError("the head is not arranged for drafting; call its arrange() first")
        layers = [layer for layer in head.layers if isinstance(layer, RelaxedLayer)]
        self.config = head.config
        self.mixer = head.mixer
        self.projection = head.projection.forward
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

    def project(self, h: Tensor, rope: Tensor) -> Projected:
        """Of h [B,S,H]; queries and keys are rotated by rope [B,S,1,2,D]."""
        product = self.projection(F.layer_norm(h, h.shape[-1:]))
        parts = product.view(*h.shape[:2], -1, self.config.num_heads, self.config.head_dim)
        turned, others = rotate(parts[:, :, ::2], rope.unsqueeze(2)), parts[:, :, 1::2]
        layers = self.config.num_layers
        keys_values = torch.stack((turned[:, :, :layers], others[:, :, :layers]), dim=3)
        return Projected(
            keys_values=keys_values.permute(2, 3, 0, 4, 1, 5),
            queries=turned[:, :, layers:],
            starts=others[:, :, layers:].flatten(3),
        )

    def attend(
        self, x: Tensor, queries: Tensor, keys_values: Tensor, rope: Tensor | None, bias: Tensor
    ) -> Tensor:
        """Rows x [B,S,H] with queries [B,S,heads,D], through all layers but the last one's MLP,
        over keys_values [layers,2,B,heads,C,D] with bias [B,1,S,C]. Further layers' queries are
        rotated by rope [B,S,1,2,D].
        """
        last = self.layers[-1]
        for layer, (keys, values) in zip(self.layers, keys_values, strict=True):
            if layer.query is not None:
                assert rope is not None
                queries = rotate(layer.query(x).view(queries.shape), rope)
            x = layer.attend(x, queries, keys, values, bias)
            x = x if layer is last else layer.mlp(x)
        return x

    def feature(self, x: Tensor) -> Tensor:
        """The predicted features of finished rows [...,H]."""
        return F.layer_norm(x, x.shape[-1:], self.norm_weight, self.norm_bias)


class Telling:
    """What coupled slots are told of tokens, of all the vocabulary at once where that is small."""

    def __init__(
        self, coupling: Coupling, embed: Callable[[Tensor], Tensor], vocab_size: int
    ) -> None:
        self.product, self.fading, self.embed = coupling.told.forward, coupling.fading, embed
        if coupling.table is None and vocab_size * self.fading.nbytes <= TOLD_BYTES:
            with torch.no_grad():
                coupling.table = self._told(torch.arange(vocab_size, device=self.fading.device))
        self.table = coupling.table

    def tell(self, tokens: Tensor, above: Tensor | None) -> Tensor:
        """Of tokens [B,P]: [B,P,2M]; `above` [B,P,2M] is what those were told that named them."""
        told = self._told(tokens) if self.table is None else self.table[tokens]
        return told if above is None else torch.addcmul(told, above, self.fading)

    def _told(self, tokens: Tensor) -> Tensor:
        told: Tensor = self.product(self.embed(tokens).to(self.fading.dtype))
        return told


def normed(norm: nn.LayerNorm, linear: nn.Linear) -> Product:
    """A linear layer of the normed input."""
    shape, weight, product = norm.normalized_shape, norm.weight, linear.forward
    return lambda x: product(F.layer_norm(x, shape, weight))
