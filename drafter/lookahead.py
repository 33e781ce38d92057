"""Lookahead decoding (Fu et al. 2024, arXiv:2402.02057): the target's own guesses, no weights.

A window of W columns and N-1 levels is run beside the guesses that are verified. Below every column
the target says what would follow, as in Jacobi iteration, and the levels move up by one each step:
what a column has held, from top to bottom, was said by the target bit by bit and makes an n-gram of
N tokens. N-grams that begin with the root are the guesses of the next steps.

    root ─┬─ a ── b         guesses: n-grams (root, a, b) and (root, d, e)
          ├─ d ── e
          └─ w0 ─┬─ w1      window of W=2, N=3: level 0 is a chain, further levels
                 │  └─ x1   hang below their column
                 └─ x0

All of it is one tree, verified as any other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tree.topology import RankPath, Tree

from .config import LookaheadConfig
from .plan import DraftPlan
from .protocol import Guess, Mend, Rank

MOST_GRAMS = 1 << 16  # first tokens of n-grams that a sequence keeps


@dataclass(slots=True)
class _State:
    """One slot's: the newest tokens read, the window's columns, and n-grams by their first token,
    the newest last.
    """

    newest: list[int] = field(default_factory=list)
    columns: list[list[int]] = field(default_factory=list)
    grams: OrderedDict[int, list[tuple[int, ...]]] = field(default_factory=OrderedDict)


class LookaheadDrafter:
    """A window and n-grams for every slot. Knows tokens only; its plan is `lookahead_tree`."""

    takes_guesses = False

    def __init__(self, config: LookaheadConfig, num_slots: int) -> None:
        self.config = config
        tree = lookahead_tree(config)
        self.block_size = tree.max_depth  # one pass names all
        self.head = nn.Module()  # no weights
        self.lengths = [0] * num_slots
        self._slots = [_State() for _ in range(num_slots)]
        nodes = {path: node for node, path in enumerate(tree.paths)}
        self._guess_nodes = [[nodes[path] for path in paths] for paths in guess_paths(config)]
        self._column_nodes = [[nodes[path] for path in paths] for paths in column_paths(config)]

    @property
    def num_bytes(self) -> int:
        """Nothing on the device."""
        return 0

    def reset(self, slot: int) -> None:
        """Forget the slot's sequence."""
        self.lengths[slot] = 0
        self._slots[slot] = _State()

    def adopt(self, slot: int, source: int, length: int) -> None:
        """Begin anew: a prompt is read in no time."""
        self.reset(slot)

    def rewind(self, slot: int, length: int) -> None:
        """Forget the slot's positions from `length` on; their n-grams may still be right."""
        self.lengths[slot] = min(self.lengths[slot], length)

    def prefill(self, slot: int, ids: Tensor, features: Tensor) -> None:
        """Take the n-grams of S more positions: tokens ids [S+1]; no features."""
        state = self._slots[slot]
        tokens = ids.tolist()
        self._read(state, tokens[1:] if state.newest[-1:] == tokens[:1] else tokens)
        self.lengths[slot] += len(ids) - 1

    def extend(
        self, slots: Sequence[int], tokens: Tensor, features: Tensor, counts: Sequence[int]
    ) -> None:
        """Take the n-grams of `counts[b]` more tokens [B,A]; no features."""
        for slot, row, count in zip(slots, tokens.tolist(), counts, strict=True):
            self._read(self._slots[slot], row[:count])
            self.lengths[slot] += count

    def draft(
        self,
        slots: Sequence[int],
        roots: Tensor,
        plan: DraftPlan,
        rank: Rank,
        mend: Mend | None = None,
        guess: Guess | None = None,
    ) -> Tensor:
        """The newest n-grams of each root, and the window: roots [B] -> tokens [B,N].

        Nodes without a guess hold token 0, which is verified as any other.
        """
        drafts = []
        for slot, root in zip(slots, roots.tolist(), strict=True):
            state, tokens = self._slots[slot], [root] + [0] * (plan.tree.num_nodes - 1)
            self._fill_window(state, root)
            for nodes, gram in zip(
                self._guess_nodes, reversed(state.grams.get(root, [])), strict=False
            ):
                for node, token in zip(nodes, gram, strict=True):
                    tokens[node] = token
            for nodes, column in zip(self._column_nodes, state.columns, strict=True):
                for node, token in zip(nodes, column, strict=True):
                    tokens[node] = token
            drafts.append(tokens)
        return torch.tensor(drafts, device=roots.device)

    def _fill_window(self, state: _State, root: int) -> None:
        """At first any tokens will do: a few steps replace them all."""
        seeds = state.newest or [root]
        if not state.columns:
            state.columns = [
                [seeds[(column + level) % len(seeds)] for level in range(self.config.ngram - 1)]
                for column in range(self.config.window)
            ]

    def watch(self, slot: int, picks: Sequence[int]) -> None:
        """Learn from what the target says after each node of the draft: picks [N]."""
        state = self._slots[slot]
        for number, nodes in enumerate(self._column_nodes):
            column = [*state.columns[number], picks[nodes[-1]]]
            self._keep(state, column)
            state.columns[number] = column[1:]

    def _read(self, state: _State, tokens: Sequence[int]) -> None:
        """Keep the n-grams that end in new tokens."""
        size = self.config.ngram
        text = [*state.newest, *tokens]
        for end in range(max(size, len(state.newest) + 1), len(text) + 1):
            self._keep(state, text[end - size : end])
        state.newest = text[1 - size :]

    def _keep(self, state: _State, gram: Sequence[int]) -> None:
        first, rest = gram[0], tuple(gram[1:])
        grams = state.grams.setdefault(first, [])
        if rest in grams:
            grams.remove(rest)
        grams.append(rest)
        del grams[: -self.config.guesses]
        state.grams.move_to_end(first)
        if len(state.grams) > MOST_GRAMS:
            state.grams.popitem(last=False)


def lookahead_tree(config: LookaheadConfig) -> Tree:
    """The guesses, the first one the top-1 chain, and the window."""
    runs = [*guess_paths(config), *column_paths(config)]
    return Tree.from_paths(path for paths in runs for path in paths)


def guess_paths(config: LookaheadConfig) -> list[list[RankPath]]:
    """By guess, the paths of its nodes from the root down."""
    below = range(config.ngram - 1)
    return [[(guess, *[0] * depth) for depth in below] for guess in range(config.guesses)]


def column_paths(config: LookaheadConfig) -> list[list[RankPath]]:
    """By column, the paths of its nodes, level 0 first."""
    columns = []
    for column in range(config.window):
        top: RankPath = (config.guesses, *[0] * column)
        rank = 1 if column + 1 < config.window else 0  # beside the next column, if there is one
        columns.append([top, *((*top, rank, *[0] * n) for n in range(config.ngram - 2))])
    return columns
