"""One draft in the making: the passes of the Falcon head over the blocks of a plan's tree.

The first pass has rows that were kept for it; each later pass reads, for every expanded node, the
K nodes that end in it. A pass names its K levels at once, or slot by slot where slots are coupled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lean import LeanHead, Telling
from .model import TargetParts
from .plan import DraftPlan, PassTables
from .protocol import Mend, Rank, name_nodes


@dataclass(slots=True)
class Draft:
    """A draft for B sequences.

    For all block rows: `rope` [B,K+R,1,2,D], and `bias` [B,1,K+R,R+C] over `keys_values`
    [layers,2,B,heads,R+C,D], block rows and then committed columns.

    `rows` [B,K,H] and `queries` [B,K,heads,D] are the first pass's, `tokens` [B,N] what is named so
    far. `features` [B,*,H], of which `PassTables.sources` tells, and `state` [2,layers,B,E,H] are
    the last pass's. `telling` is for coupled slots.
    """

    lean: LeanHead
    parts: TargetParts
    telling: Telling | None
    plan: DraftPlan
    rope: Tensor
    bias: Tensor
    keys_values: Tensor
    rows: Tensor
    queries: Tensor
    tokens: Tensor
    features: Tensor
    state: Tensor

    def run(self, rank: Rank, mend: Mend | None) -> Tensor:
        """All passes, or as many as `mend` lets run: tokens [B,N]."""
        for number, tables in enumerate(self.plan.passes):
            x = self._read_blocks(tables) if number else self._read_root(tables)
            if self.telling is None:
                goes_on = self._name_at_once(tables, x, rank, mend)
            else:
                goes_on = self._name_by_slot(tables, x, self.telling, rank, mend)
            if not goes_on:
                break
        return self.tokens

    def _read_root(self, tables: PassTables) -> Tensor:
        """The newest K committed positions, which see all before them: [B,K,H] (`_attend`)."""
        return self._attend(tables, self.rows, self.queries)

    def _read_blocks(self, tables: PassTables) -> Tensor:
        """A block of K nodes for each expanded node, from its parent block's features and state:
        [B,E*K,H] (`_attend`).
        """
        batch, hidden, k = len(self.tokens), self.features.shape[-1], self.lean.config.block_size
        is_coupled = self.telling is not None
        sources = tables.told_sources if is_coupled else tables.sources
        features = self.features[:, sources]  # [B, E*K, H]
        state = self.state[:, :, :, tables.parent_blocks]  # [2, layers, B, E, H]
        embeddings = self.parts.embed(self.tokens[:, tables.block_nodes]).to(features.dtype)
        h, state_after = self.lean.mix(
            embeddings.view(-1, k, hidden), features.reshape(-1, k, hidden), state.flatten(2, 3)
        )
        self.state = state_after.view(state.shape)
        h = h.reshape(batch, -1, hidden)  # [B, E*K, H]
        projected = self.lean.project(h, self.rope[:, tables.rows])
        end = self.bias.shape[2]
        columns = slice(end - tables.rows.stop, end - tables.rows.start)
        self.keys_values[..., columns, :] = projected.keys_values
        if not is_coupled:
            return self._attend(tables, h, projected.queries[:, :, 0])
        ends = slice(k - 1, None, k)
        rows = (h[:, ends, None] + projected.starts[:, ends]).flatten(1, 2)
        return self._attend(tables, rows, projected.queries[:, ends].flatten(1, 2))

    def _attend(self, tables: PassTables, x: Tensor, queries: Tensor) -> Tensor:
        """A pass's rows [B,E*K,H] up to the last MLP; they see its own columns and those behind."""
        first = self.bias.shape[2] - tables.rows.stop
        keys_values = self.keys_values[..., first:, :]
        bias = self.bias[:, :, tables.rows, first:].contiguous()  # CUDA's kernels need it aligned
        return self.lean.attend(x, queries, keys_values, self._query_rope(tables), bias)

    def _query_rope(self, tables: PassTables) -> Tensor | None:
        """Of further layers' queries [B,E*K,1,2,D]; coupled slots ask from their block's end."""
        if len(self.lean.layers) == 1:
            return None
        rope, k = self.rope[:, tables.rows], self.lean.config.block_size
        return rope if self.telling is None else rope[:, k - 1 :: k].repeat_interleave(k, 1)

    def _name_at_once(self, tables: PassTables, x: Tensor, rank: Rank, mend: Mend | None) -> bool:
        """All levels, from rows x [B,E*K,H]; False where no further pass is to be run."""
        self.features = self.lean.feature(self.lean.layers[-1].mlp(x))
        shape = len(x), -1, self.lean.config.block_size, x.shape[-1]
        logits = self.parts.head(self.features.view(shape))  # [B, E, K, V]
        return name_nodes(self.tokens, logits, tables.whole, rank, mend)

    def _name_by_slot(
        self, tables: PassTables, x: Tensor, telling: Telling, rank: Rank, mend: Mend | None
    ) -> bool:
        """One level after the other, each slot told what the ones before it named."""
        goes_on, told = True, None
        features: list[Tensor] = []
        mlp = self.lean.layers[-1]
        whole = mlp.gate_up(x)  # [B, E*K, 2M]
        for slot in tables.by_slot:
            inner = whole[:, slot.rows]
            if features:
                above = None if told is None else told[:, slot.above]
                told = telling.tell(self.tokens[:, slot.parents], above)
                inner = inner + told
            features.append(self.lean.feature(mlp.close(x[:, slot.rows], inner)))
            logits = self.parts.head(features[-1])[:, :, None]  # [B, P, 1, V]
            goes_on = name_nodes(self.tokens, logits, slot.naming, rank, mend)
        self.features = torch.cat(features, 1)
        return goes_on
