"""The Falcon head for drafting: the mathematics of `model.py` in as few operations as it takes.

A pass has few rows, so its time is the number of its operations more than their work, and a call
of an `nn.Module` costs as much as a small operation. These are plain functions over the weights
that `FalconHead.arrange` laid out. Keys, values and the first layer's queries are all projections
of h and come from one product; queries and starts of coupled slots come from another:

    h     ── norm ── projection ── k v of layer 0, k v of layer 1, ..., q of layer 0
    h_end ── norm ── opening    ── s q of slot 0, s q of slot 1, ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .coupling import as_told
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

    def forward(
        self, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
    ) -> Tensor:
        """x [B,S,H]; queries [B,S,heads,D]; keys, values [B,heads,C,D] and, if any, bias
        [B,1,S,C], which are of `attention_dtype`.
        """
        queries = queries.transpose(1, 2).to(keys.dtype)
        mixed = F.scaled_dot_product_attention(queries, keys, values, bias)
        x = x + self.output(mixed.transpose(1, 2).flatten(2).to(x.dtype))
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
        self.opening = None if head.opening is None else head.opening.forward
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
        """Of h [B,S,H] with rope [B,S,1,2,D]: keys and values [layers,2,B,heads,S,D], and rows
        [B,S,2H] for `predict`; [B,S,H] where slots are coupled, for these begin otherwise (`open`).
        """
        product = self.projection(F.layer_norm(h, h.shape[-1:]))
        parts = product.view(*h.shape[:2], -1, self.config.num_heads, self.config.head_dim)
        turned, others = rotate(parts[:, :, ::2], rope.unsqueeze(2)), parts[:, :, 1::2]
        layers = self.config.num_layers
        keys_values = torch.stack((turned[:, :, :layers], others), dim=3)
        coupled = self.config.coupled
        rows = h if coupled else torch.cat((h, turned[:, :, layers:].flatten(2)), dim=-1)
        return keys_values.permute(2, 3, 0, 4, 1, 5), rows

    def open(self, ends: Tensor) -> Tensor:
        """Rows [B,E*K,2H] of coupled slots, of the last positions of blocks [B,E,H]: what they are
        before they are told anything.
        """
        assert self.opening is not None
        opened = self.opening(F.layer_norm(ends, ends.shape[-1:]))
        opened = opened.view(*ends.shape[:2], self.config.block_size, -1)  # [B, E, K, 2H]
        opened[..., : ends.shape[-1]] += ends[:, :, None]
        return opened.flatten(1, 2)

    def predict(
        self, rows: Tensor, keys_values: Tensor, rope: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Features [B,S,H] of rows [B,S,2H], what each begins with and its query, over keys_values
        [layers,2,B,heads,C,D], with bias [B,1,S,C] if any. Queries are rotated by rope
        [B,S,1,2,D], but for the first layer's where slots are not coupled (`project`).
        """
        x, query = rows.chunk(2, dim=-1)
        queries = query.view(*rows.shape[:2], self.config.num_heads, -1)
        if self.config.coupled:
            queries = rotate(queries, rope)
        if bias is not None:
            bias = bias.contiguous()  # CUDA's kernels need it aligned
        for layer, (keys, values) in zip(self.layers, keys_values, strict=True):
            if layer.query is not None:
                queries = rotate(layer.query(x).view(queries.shape), rope)
            x = layer.forward(x, queries, keys, values, bias)
        return F.layer_norm(x, x.shape[-1:], self.norm_weight, self.norm_bias)


class Telling:
    """What coupled slots are told of tokens, of all the vocabulary at once where that is small."""

    def __init__(self, head: FalconHead, embed: Callable[[Tensor], Tensor]) -> None:
        assert head.coupling is not None
        config, weight = head.config, head.norm.weight
        vocabulary = torch.arange(config.vocab_size, device=weight.device)
        self.products = [product.forward for product in head.coupling.told]
        self.embed, self.dtype = embed, weight.dtype
        # Of slot s there is a table for each of the s + 1 tokens, one after the other.
        starts = [
            slot * (slot + 1) // 2 * config.vocab_size for slot in range(config.block_size + 1)
        ]
        self.places = [range(*ends, config.vocab_size) for ends in pairwise(starts)]
        self.shifts = [torch.tensor(own, device=weight.device) for own in self.places]
        size = starts[-1] * 2 * config.hidden_size * weight.itemsize
        if head.coupling.table is None and size <= TOLD_BYTES:
            with torch.no_grad():
                head.coupling.table = self._tabulate(vocabulary)
        self.table = head.coupling.table

    def tell(self, slot: int, tokens: Tensor) -> Tensor:
        """Of tokens [B,P,slot+1], newest first, what to add to starts and queries [B,P,2H]."""
        if self.table is None:
            told: Tensor = self.products[slot](self._words(tokens).flatten(2))
            return told
        told = F.embedding(tokens + self.shifts[slot], self.table)
        return told.sum(2) if slot else told[:, :, 0]

    def tell_run(self, first: int, tokens: Sequence[int]) -> Tensor:
        """`tell` of the slots from `first` on of one block, slot s of the first s + 1 tokens, the
        newest last: [1,L,2H] for L slots.
        """
        slots, device = range(first, len(tokens)), self.shifts[0].device
        if self.table is None:
            known = torch.tensor(tokens[::-1], device=device)[None, None]
            return torch.cat([self.tell(slot, known[..., -1 - slot :]) for slot in slots], 1)
        rows = [
            place + tokens[slot - back]
            for slot in slots
            for back, place in enumerate(self.places[slot])
        ]
        starts = [(slot - first) * (slot + first + 1) // 2 for slot in slots]
        bags = torch.tensor(rows, device=device), torch.tensor(starts, device=device)
        return F.embedding_bag(bags[0], self.table, bags[1], mode="sum")[None]

    def _words(self, tokens: Tensor) -> Tensor:
        return as_told(self.embed(tokens)).to(self.dtype)

    def _tabulate(self, tokens: Tensor) -> Tensor:
        """[K*(K+1)/2*V,2H] of all V tokens: each alone in each place of each slot."""
        words = self._words(tokens)
        hidden = words.shape[-1]
        return torch.cat(
            [
                product(F.pad(words, (back * hidden, (slot - back) * hidden)))
                for slot, product in enumerate(self.products)
                for back in range(slot + 1)
            ]
        )


def attention_dtype(weight: Tensor) -> torch.dtype:
    """What keys and values are kept in: float32 on a CPU, whose attention in bfloat16 takes six
    times as long for the one row that most levels of a draft have.
    """
    return torch.float32 if weight.device.type == "cpu" else weight.dtype


def normed(norm: nn.LayerNorm, linear: nn.Linear) -> Product:
    """A linear layer of the normed input."""
    shape, weight, product = norm.normalized_shape, norm.weight, linear.forward
    return lambda x: product(F.layer_norm(x, shape, weight))
