"""Drafting over a tree: the Falcon head with its own key-value slots and mixer states.

A draft (`draft.py`) starts from the newest K committed positions of a slot. Nothing speculative
outlives the step: real features replace predicted ones when the accepted tokens are fed back by
`extend`.

Position i holds (x_{i+1}, f_i), so a root at token position t stands on drafter positions 0..t-1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .draft import Draft
from .index import Index, index_of
from .lean import LeanHead, Telling, attention_dtype
from .model import MAX_FED_BACK, FalconHead, TargetParts, rope_table
from .plan import DraftPlan
from .protocol import Guess, Mend, Rank

# Positions after which an empty mixer state has become much like the true one.
WARM_UP = 64
WHOLE_STRETCH = 32  # fewer positions are read at once, whatever their number


def stretch(left: int) -> int:
    """How many of the positions that are left to read at once.

    The CPU's kernels are made anew for each number of rows, so only few numbers come up: powers of
    two, and what is less than `WHOLE_STRETCH`.

        300 -> 256, 44 -> 32, 12 -> 12
    """
    return left if left < WHOLE_STRETCH else 1 << (left.bit_length() - 1)


class FalconDrafter:
    """A Falcon head with slots: keys and values, mixer state and the next root pass's rows of each.

    Committed position p stands in column `scratch + p % columns` of its slot: a ring where the head
    has a window. The first `scratch` columns take the block rows of a draft.
    """

    def __init__(
        self, head: FalconHead, parts: TargetParts, num_slots: int, capacity: int, scratch: int
    ) -> None:
        """`head` must be arranged. Slots take `capacity` positions, and `scratch` block rows, which
        is a plan's `num_rows`.
        """
        config = head.config
        self.head = head
        self.lean = LeanHead(head)
        self.parts = parts
        self.block_size = config.block_size
        self.scratch = scratch
        # A step feeds back up to MAX_FED_BACK positions, whose first sees a whole window.
        window = capacity if config.window is None else config.window + MAX_FED_BACK
        self.columns = min(capacity, window)
        weight = head.norm.weight
        shape = (config.num_layers, 2, num_slots, config.num_heads, scratch + self.columns)
        self.keys_values = torch.zeros(
            *shape, config.head_dim, dtype=attention_dtype(weight), device=weight.device
        )
        self.state = self.lean.initial_state(num_slots)  # [2, layers, slots, H]
        self.tail = weight.new_zeros(num_slots, config.block_size, 2 * config.hidden_size)
        self.lengths = [0] * num_slots
        self.column_ids = torch.arange(self.columns, device=weight.device)
        positions = torch.arange(-self.block_size, capacity + scratch, device=weight.device)
        self.rope = rope_table(positions, config).to(weight.dtype)  # row i: position i - K
        self.telling = Telling(head, parts.embed) if config.coupled else None
        self.takes_guesses = config.coupled

    @property
    def num_bytes(self) -> int:
        """Of keys and values."""
        return int(self.keys_values.nbytes)

    def reset(self, slot: int) -> None:
        """Forget the slot's sequence."""
        self.keys_values[:, :, slot] = 0
        self._restart(slot, 0)

    def adopt(self, slot: int, source: int, length: int) -> None:
        """Let `slot` hold the first positions of `source`, at most `length` of them.

        The mixer's state at that point is not known any more: so many positions as bring an empty
        state close to the true one are left out, for `prefill` to read anew.
        """
        window = self.head.config.window
        unread = WARM_UP if window is None else self.columns
        kept = max(0, min(length, self.lengths[source]) - unread)
        if kept == 0 or not bool(self.tail[source].isfinite().all()):  # sync: once a request
            self.reset(slot)
            return
        if source != slot:
            self.keys_values[:, :, slot] = self.keys_values[:, :, source]
        self._restart(slot, kept)

    def rewind(self, slot: int, length: int) -> None:
        """Forget the slot's positions from `length` on, and a few before them (`adopt`)."""
        self.adopt(slot, slot, length)

    def _restart(self, slot: int, length: int) -> None:
        self.lengths[slot] = length
        self.state[:, :, slot] = 0
        self.tail[slot] = 0

    def prefill(self, slot: int, ids: Tensor, features: Tensor) -> None:
        """Read S more positions: tokens x_s..x_{s+S} [S+1] and features f_s.. [S,H].

        With a window only the newest positions are read, so that the cost stays bounded.
        """
        tokens, done = ids[1:], max(0, len(features) - self.columns)
        self.lengths[slot] += done
        while done < len(features):
            count = stretch(len(features) - done)
            part = slice(done, done + count)
            self.extend([slot], tokens[None, part], features[None, part], [count])
            done += count

    def extend(
        self, slots: Sequence[int], tokens: Tensor, features: Tensor, counts: Sequence[int]
    ) -> None:
        """Commit `counts[b]` >= 1 positions of each slot: tokens [B,A], features [B,A,H].

        What stands past a slot's count is padding.
        """
        dtype = self.rope.dtype
        embeddings = self.parts.embed(tokens).to(dtype)
        h = self._advance(slots, embeddings, features.to(dtype), counts)  # [B, A, H]
        starts = [self.lengths[slot] for slot in slots]
        rope = torch.stack([self._rope(start, tokens.shape[1]) for start in starts])
        keys_values, rows = self.lean.project(h, rope)
        keys_values = keys_values.to(self.keys_values.dtype)
        for b, (slot, start, count) in enumerate(zip(slots, starts, counts, strict=True)):
            if self.telling is None:
                self.tail[slot] = self._newest(self.tail[slot], rows[b, :count])
            columns = self._columns(start, count)
            self.keys_values[:, :, slot, :, columns] = keys_values[:, :, b, :, :count]
            self.lengths[slot] += count
        if self.telling is not None:
            index, last = index_of(slots, h.device), [count - 1 for count in counts]
            self.tail[index] = self.lean.open(rows[range(len(slots)), last][:, None])

    def _advance(
        self, slots: Sequence[int], embeddings: Tensor, features: Tensor, counts: Sequence[int]
    ) -> Tensor:
        """Run each slot's mixer over its count of the [B,A,H]: h [B,A,H]; an LSTM in stretches.

        counts     stretch 1    2    3
             1             x
             4             x    x x  x
             3             x    x x
        """
        if self.head.config.mixer == "linear":  # knows no order
            return self.lean.mix(embeddings, features, self.state)[0]
        h = torch.zeros_like(embeddings)
        done = 0
        for stop in sorted(set(counts)):
            batch = [b for b, count in enumerate(counts) if count >= stop]
            rows, index = index_of(batch, h.device), index_of([slots[b] for b in batch], h.device)
            h[rows, done:stop], self.state[:, :, index] = self.lean.mix(
                embeddings[rows, done:stop], features[rows, done:stop], self.state[:, :, index]
            )
            done = stop
        return h

    def draft(
        self,
        slots: Sequence[int],
        roots: Tensor,
        plan: DraftPlan,
        rank: Rank,
        mend: Mend | None = None,
        guess: Guess | None = None,
    ) -> Tensor:
        """Name the nodes of the plan's tree for each slot: roots [B] -> tokens [B,N]."""
        if plan.num_rows > self.scratch:
            raise ValueError(
                f"a plan of {plan.num_rows} block rows; there is room for {self.scratch}"
            )
        return self._begin(slots, roots, plan).run(rank, mend, guess)

    def _begin(self, slots: Sequence[int], roots: Tensor, plan: DraftPlan) -> Draft:
        """Everything about the rows that does not depend on what is drafted."""
        index = index_of(slots, roots.device)
        lengths = [self.lengths[slot] for slot in slots]
        used = max(1, min(max(lengths), self.columns))
        columns = slice(self.scratch - plan.num_rows, self.scratch + used)
        ends = torch.tensor(lengths, device=roots.device)[:, None]  # [B, 1]
        rows = self.tail[index]  # [B, K, 2H]
        return Draft(
            lean=self.lean,
            parts=self.parts,
            telling=self.telling,
            plan=plan,
            rope=self.rope[ends + plan.offsets],
            bias=self._bias(ends, used, plan),
            keys_values=self.keys_values[:, :, index, :, columns],
            rows=rows,
            tokens=F.pad(roots[:, None], (0, plan.tree.num_nodes - 1)),
            features=rows[:, :0, : self.head.config.hidden_size],
            state=self.state[:, :, index, None],
        )

    def _bias(self, ends: Tensor, used: int, plan: DraftPlan) -> Tensor | None:
        """[B,1,K+R,R+C]: the plan's, and 0 for committed columns that a row sees, else -inf. None
        where nothing is hidden.

        Column c holds the newest position p < end with p % columns == c, if there is one.
        """
        window = self.head.config.window
        if len(ends) == 1 and window is None and plan.see_all:
            return None
        own = plan.bias.to(self.keys_values.dtype)
        if len(ends) == 1 and window is None:
            return F.pad(own, (0, used))[None, None]
        newest = ends - 1
        held = newest - (newest - self.column_ids[:used]) % self.columns  # [B, C]
        oldest = torch.zeros_like(plan.offsets).expand(len(ends), -1)  # [B, K+R]
        if window is not None:
            oldest = (ends - self.block_size + plan.offsets - window + 1).clamp(min=0)
        is_hidden = held[:, None] < oldest[:, :, None]  # [B, K+R, C]
        committed = own.new_zeros(is_hidden.shape).masked_fill_(is_hidden, -torch.inf)
        return torch.cat((own.expand(len(ends), -1, -1), committed), dim=-1)[:, None]

    def _newest(self, before: Tensor, rows: Tensor) -> Tensor:
        """The last K rows of both: [K,2H] and [S,2H] -> [K,2H]."""
        if len(rows) < self.block_size:
            rows = torch.cat((before, rows))
        return rows[-self.block_size :]

    def _rope(self, start: int, count: int) -> Tensor:
        """`rope` of positions from `start` >= -K on: [count,1,2,D]."""
        return self.rope[start + self.block_size : start + self.block_size + count]

    def _columns(self, start: int, count: int) -> Index:
        """Where positions from `start` on stand in `keys_values`."""
        columns = [self.scratch + p % self.columns for p in range(start, start + count)]
        return index_of(columns, self.rope.device)
