"""What the engine asks of a drafter, whatever the method behind it.

A drafter only proposes: the target's own pick decides at every node, so that nothing here can
change an answer, only how fast it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from .naming import Naming
from .plan import DraftPlan

# rank(draft_logits [B,E,L,V], what they name, or the first of L levels) -> token ids [B,E,L,width],
# best first; the engine's sampler bound to the batch, so that candidates are ranked by the noise of
# the target.
Rank = Callable[[Tensor, Naming], Tensor]

# mend(draft_logits [B,E,L,V], tokens [B,N], what was named): a last word on the tokens, before they
# are read; False where nothing further is to be named.
Mend = Callable[[Tensor, Tensor, Naming], bool]

# guess(tokens named below the root so far, most): what may follow them, at most so many tokens. A
# guess saves a drafter time where it is right, and changes nothing where it is not.
Guess = Callable[[Sequence[int], int], Sequence[int]]


class Drafter(Protocol):
    """Drafts for the sequences in the engine's slots, from what is committed in each of them.

    Position i of a slot holds (x_{i+1}, f_i): a token with the target's feature that named it.
    `lengths` [slots] are the positions read so far; with as many as there are committed ones, the
    root of the next tree is the newest token read. `block_size` is how many levels of a tree one
    pass names; with `takes_guesses` several are named together where they can be guessed. `head`
    holds the drafter's own weights, `num_bytes` is what its slots take.
    """

    block_size: int
    takes_guesses: bool
    lengths: list[int]

    @property
    def head(self) -> nn.Module: ...

    @property
    def num_bytes(self) -> int: ...

    def reset(self, slot: int) -> None:
        """Forget the slot's sequence."""

    def adopt(self, slot: int, source: int, length: int) -> None:
        """Let `slot` hold the first positions of `source`, at most `length` of them."""

    def rewind(self, slot: int, length: int) -> None:
        """Forget the slot's positions from `length` on, or more."""

    def prefill(self, slot: int, ids: Tensor, features: Tensor) -> None:
        """Read S positions behind those that the slot holds: the tokens x_s..x_{s+S} [S+1] from
        position s = `lengths[slot]` on, and features f_s.. [S,H].
        """

    def extend(
        self, slots: Sequence[int], tokens: Tensor, features: Tensor, counts: Sequence[int]
    ) -> None:
        """Read `counts[b]` >= 1 positions behind the root that was drafted from: tokens [B,A],
        features [B,A,H]. What stands past a slot's count is padding.
        """

    def draft(
        self,
        slots: Sequence[int],
        roots: Tensor,
        plan: DraftPlan,
        rank: Rank,
        mend: Mend | None = None,
        guess: Guess | None = None,
    ) -> Tensor:
        """Name the nodes of the plan's tree for each slot: roots [B] -> tokens [B,N].

        Nodes that `mend` did not let be named hold token 0. `guess` is for one slot alone.
        """
        ...


@runtime_checkable
class Watcher(Protocol):
    """A drafter that learns from all of the target's picks, not only those that are accepted."""

    def watch(self, slot: int, picks: Sequence[int]) -> None:
        """The target's likeliest token after each node of the slot's newest draft: picks [N]."""


def name_nodes(
    tokens: Tensor, logits: Tensor, naming: Naming, rank: Rank, mend: Mend | None
) -> bool:
    """Write tokens [B,N] of the naming's nodes, by draft logits [B,E,L,V].

    False where nothing further is to be named.
    """
    best = rank(logits, naming)  # [B, E, L, width]
    tokens[:, naming.nodes] = best.flatten(1)[:, naming.candidates]
    return mend is None or mend(logits, tokens, naming)


def name_run(
    names: list[int],
    told: Sequence[int],
    nodes: Sequence[int],
    namings: Sequence[Naming],
    logits: Tensor,
    best: Sequence[Sequence[int]],
    tokens: Tensor,
    mend: Mend | None,
) -> tuple[int, bool]:
    """Name levels of one sequence's path that ran together, as far as each was told the truth: how
    many that were, and whether more is to be named.

    Level l, of draft logits [1,1,L,V] and candidates best [L][width], names the children of its
    node in `names` [N] by its naming, if that node is what it was told. `mend` gets `tokens` as
    they are.
    """
    for level, (token, node, naming) in enumerate(zip(told, nodes, namings, strict=False)):
        if names[node] != token:
            return level, True
        for family in naming.families:
            for child, name in zip(family.children, best[level], strict=False):
                names[child] = name
        if mend is not None and not mend(logits[:, :, level, None], tokens, naming):
            return level + 1, False
    return len(told), True
