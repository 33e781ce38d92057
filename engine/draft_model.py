"""Speculative sampling's drafter (Leviathan et al. 2023): a smaller model of the same vocabulary.

It drafts a chain, a token a pass, in slots of its own; each node of the chain may have siblings.
What it has read of a sequence stands in its slot; what the target accepted of a draft stands there
already, since the draft wrote it:

    slot        x_0 ... x_{L-1} | root d_1 d_2    after a draft of 3 passes
    accepted                           d_1 t u    root and d_1 stay; t is read with u, the next root
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drafter.config import DrafterError
from drafter.plan import DraftPlan
from drafter.protocol import Guess, Mend, Rank, name_nodes, name_run
from tree.topology import Tree

from .rows import Rows
from .target import Target

MOST_GUESSED = 7  # tokens that are read together with the newest


class DraftModel:
    """A drafter that is a language model itself; `lengths` counts the tokens before the root."""

    block_size = 1
    takes_guesses = True

    def __init__(self, model: Target, num_slots: int) -> None:
        self.model = model
        self.lengths = [0] * num_slots
        # Tokens read but not computed yet, and those computed beyond, of the newest draft.
        self._pending: list[list[int]] = [[] for _ in range(num_slots)]
        self._ahead: list[list[int]] = [[] for _ in range(num_slots)]

    @property
    def head(self) -> nn.Module:
        """All of its weights."""
        model: nn.Module = self.model.model
        return model

    @property
    def num_bytes(self) -> int:
        """Of keys and values."""
        return int(self.model.slots.tensor.nbytes)

    def reset(self, slot: int) -> None:
        """Forget the slot's sequence."""
        self.model.scrub(slot)
        self._restart(slot, 0)

    def adopt(self, slot: int, source: int, length: int) -> None:
        """Let `slot` hold the first tokens of `source`, at most `length` of them."""
        kept = min(length, self._computed(source))
        self.model.copy_prefix(source, slot, kept)
        self._restart(slot, kept)

    def rewind(self, slot: int, length: int) -> None:
        """Forget the slot's tokens from `length` on."""
        self.adopt(slot, slot, length)

    def prefill(self, slot: int, ids: Tensor, features: Tensor) -> None:
        """Read S more tokens: ids [S+1], of which the last is the next root; no features."""
        tokens = [*self._pending[slot], *ids[:-1].tolist()]
        self.model.prefill(slot, self._computed(slot), tokens)
        self._restart(slot, self._computed(slot) + len(tokens))

    def extend(
        self, slots: Sequence[int], tokens: Tensor, features: Tensor, counts: Sequence[int]
    ) -> None:
        """Read the root that was drafted from and all but the last of `counts[b]` tokens [B,A]."""
        for slot, row, count in zip(slots, tokens.tolist(), counts, strict=True):
            ahead = self._ahead[slot]
            read = [ahead[0], *row[: count - 1]]
            differs = (n for n, token in enumerate(read) if ahead[n : n + 1] != [token])
            alike = next(differs, len(read))
            self.lengths[slot] += count
            self._pending[slot], self._ahead[slot] = read[alike:], []

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
        check_is_chain(plan.tree)
        if guess is not None:
            return self._draft_in_runs(slots, roots, plan, rank, mend, guess)
        tokens = F.pad(roots[:, None], (0, plan.tree.num_nodes - 1))
        starts = [self._computed(slot) for slot in slots]
        pending = [
            [*self._pending[slot], root] for slot, root in zip(slots, roots.tolist(), strict=True)
        ]
        most = max(map(len, pending))
        ids = torch.tensor([row + [0] * (most - len(row)) for row in pending], device=roots.device)
        logits = self._forward(slots, starts, ids)[range(len(slots)), [len(p) - 1 for p in pending]]
        lengths = [start + len(row) for start, row in zip(starts, pending, strict=True)]
        read = 1
        while name_nodes(tokens, logits[:, None, None], plan.passes[read - 1].whole, rank, mend):
            if read == len(plan.passes):
                break
            behind = [length + read - 1 for length in lengths]
            # The chain's nodes come first in a tree.
            logits = self._forward(slots, behind, tokens[:, read, None])[:, 0]
            read += 1
        for slot, row in zip(slots, tokens[:, :read].tolist(), strict=True):
            self._pending[slot], self._ahead[slot] = [], row
        return tokens

    def _draft_in_runs(
        self,
        slots: Sequence[int],
        roots: Tensor,
        plan: DraftPlan,
        rank: Rank,
        mend: Mend | None,
        guess: Guess,
    ) -> Tensor:
        """`draft` for one slot: tokens that are guessed are read together, and what is named behind
        them holds as far as they were right (cascade drafting, Chen et al. 2023).
        """
        (slot,) = slots
        names: list[int] = [*roots.tolist(), *[0] * (plan.tree.num_nodes - 1)]
        namings = [tables.whole for tables in plan.passes]
        unread, length = [*self._pending[slot], names[0]], self._computed(slot)
        held, goes_on = 0, True
        while goes_on and held < len(namings):
            guessed = guess(names[1 : held + 1], min(MOST_GUESSED, len(namings) - held - 1))
            ids = torch.tensor([[*unread, *guessed]], device=roots.device)
            logits = self._forward(slots, [length], ids)[:, None, len(unread) - 1 :]
            best = rank(logits, namings[held])[0, 0].tolist()  # sync: guesses are made on the host
            told = [names[held], *guessed]
            count, goes_on = name_run(
                names, told, range(held, len(names)), namings[held:], logits, best, roots, mend
            )
            length += len(unread) - 1 + count
            held += count
            unread = [names[held]]  # the chain's nodes come first in a tree
        self._pending[slot], self._ahead[slot] = [], names[:held]
        return torch.tensor([names], device=roots.device)

    def _forward(self, slots: Sequence[int], lengths: Sequence[int], ids: Tensor) -> Tensor:
        """Logits [B,T,V] of ids [B,T] behind so many computed tokens of each slot."""
        count = ids.shape[1]
        offsets = torch.arange(count, device=ids.device)
        visible = offsets[None, :] <= offsets[:, None]
        batch = len(slots)
        rows = Rows(slots, lengths, offsets.expand(batch, -1), visible.expand(batch, -1, -1))
        return self.model.forward(ids.flatten(), rows).logits.view(batch, count, -1)

    def _computed(self, slot: int) -> int:
        """Tokens whose keys and values stand in the slot for good."""
        return self.lengths[slot] - len(self._pending[slot])

    def _restart(self, slot: int, length: int) -> None:
        self.lengths[slot] = length
        self._pending[slot], self._ahead[slot] = [], []


def check_is_chain(tree: Tree) -> None:
    """Raise `DrafterError` where more than the top-1 chain has children."""
    if any(any(path[:-1]) for path in tree.paths):
        raise DrafterError("a draft model's tree is a chain, whose nodes may have siblings")
