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
from .protocol import Guess, Mend, Rank, name_nodes, name_run


@dataclass(slots=True)
class Draft:
    """A draft for B sequences.

    For all block rows: `rope` [B,K+R,1,2,D], and `bias` [B,1,K+R,R+C], or None, over `keys_values`
    [layers,2,B,heads,R+C,D], block rows and then committed columns.

    `rows` [B,E*K,2H] are those of the pass that is run (`LeanHead.predict`), the first one's to
    begin with; `tokens` [B,N] what is named so far. `features` [B,*,H], of which
    `PassTables.sources` tells, and `state` [2,layers,B,E,H] are the last pass's. Coupled slots have
    a `telling`.
    """

    lean: LeanHead
    parts: TargetParts
    telling: Telling | None
    plan: DraftPlan
    rope: Tensor
    bias: Tensor | None
    keys_values: Tensor
    rows: Tensor
    tokens: Tensor
    features: Tensor
    state: Tensor

    def run(self, rank: Rank, mend: Mend | None, guess: Guess | None) -> Tensor:
        """All passes, or as many as `mend` lets run: tokens [B,N]."""
        for number, tables in enumerate(self.plan.passes):
            if number:
                self._read_blocks(tables)
            if self.telling is None:
                goes_on = self._name_at_once(tables, rank, mend)
            elif guess is None or tables.path is None:
                goes_on = self._name_by_slot(tables, self.telling, rank, mend)
            else:
                goes_on = self._name_in_runs(tables, self.telling, rank, mend, guess)
            if not goes_on:
                break
        return self.tokens

    def _read_blocks(self, tables: PassTables) -> None:
        """Make the rows of a block of K nodes for each expanded node, from its parent block's
        features and state.
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
        rope = self.rope[:, tables.rows]
        keys_values, rows = self.lean.project(h, rope)
        end = len(self.plan.offsets)
        columns = slice(end - tables.rows.stop, end - tables.rows.start)
        self.keys_values[..., columns, :] = keys_values
        self.rows = self.lean.open(h[:, k - 1 :: k]) if is_coupled else rows

    def _seen(self, tables: PassTables) -> tuple[Tensor, Tensor | None]:
        """What a pass's rows see, its own columns and those behind: keys and values
        [layers,2,B,heads,C,D], bias [B,1,E*K,C].
        """
        first = len(self.plan.offsets) - tables.rows.stop
        keys_values = self.keys_values[..., first:, :]
        return keys_values, None if self.bias is None else self.bias[:, :, tables.rows, first:]

    def _name_at_once(self, tables: PassTables, rank: Rank, mend: Mend | None) -> bool:
        """All levels of a pass; False where no further one is to be run."""
        keys_values, bias = self._seen(tables)
        rope = self.rope[:, tables.rows]
        self.features = self.lean.predict(self.rows, keys_values, rope, bias)
        shape = len(self.tokens), -1, self.lean.config.block_size, self.features.shape[-1]
        logits = self.parts.head(self.features.view(shape))  # [B, E, K, V]
        return name_nodes(self.tokens, logits, tables.whole, rank, mend)

    def _name_by_slot(
        self, tables: PassTables, telling: Telling, rank: Rank, mend: Mend | None
    ) -> bool:
        """One level after the other, each slot told what the ones before it named."""
        features = []
        keys_values, bias = self._seen(tables)
        rope = self.rope[:, tables.rows]
        for number, slot in enumerate(tables.by_slot):
            own_rope = rope[:, slot.ends]
            tokens = self.tokens[:, slot.told].view(len(self.tokens), -1, number + 1)
            rows = self.rows[:, slot.rows] + telling.tell(number, tokens)
            own_bias = None if bias is None else bias[:, :, slot.rows]
            predicted = self.lean.predict(rows, keys_values, own_rope, own_bias)
            features.append(predicted)
            logits = self.parts.head(predicted)[:, :, None]  # [B, P, 1, V]
            if not name_nodes(self.tokens, logits, slot.naming, rank, mend):
                return False
        self.features = torch.cat(features, 1)
        return True

    def _name_in_runs(
        self,
        tables: PassTables,
        telling: Telling,
        rank: Rank,
        mend: Mend | None,
        guess: Guess,
    ) -> bool:
        """As `_name_by_slot`, for one sequence and one path: slots run together, told what those
        before them are guessed to name, and their names hold as far as that was true. K=4, root a:

            slot        0  1  2  3
            told last   a  b  c  d      b c d are a guess
            named       b  c  x         so d was wrong: slot 3 runs again, told x
        """
        assert tables.path is not None
        features = []
        keys_values, bias = self._seen(tables)
        rope = self.rope[:, tables.rows.stop - 1, None]  # of the block's last position
        names: list[int] = self.tokens[0].tolist()  # sync: guesses are made on the host
        namings = [slot.naming for slot in tables.by_slot]
        top, held, goes_on = len(tables.path) - len(namings), 0, True
        while goes_on and held < len(namings):
            known = [names[node] for node in tables.path[: top + held + 1]]
            told = [*known[top:], *guess(known[1:], len(namings) - held - 1)]
            run = slice(held, len(told))
            rows = self.rows[:, run] + telling.tell_run(held, told)
            own_bias = None if bias is None else bias[:, :, run]
            predicted = self.lean.predict(rows, keys_values, rope, own_bias)  # [1, L, H]
            logits = self.parts.head(predicted)[:, None]  # [1, 1, L, V]
            best = rank(logits, namings[held])[0, 0].tolist()  # sync: as above
            nodes = tables.path[top + held :]
            count, goes_on = name_run(
                names, told[run], nodes, namings[run], logits, best, self.tokens, mend
            )
            features.append(predicted[:, :count])
            held += count
        self.features = torch.cat(features, 1)
        self.tokens = torch.tensor([names], device=self.tokens.device)
        return goes_on
