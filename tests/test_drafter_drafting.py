"""Drafting on slots against the head's own teacher-forced forward: positions, masks, state."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from drafter.config import DrafterConfig, DrafterError
from drafter.drafting import FalconDrafter, build_plan
from drafter.model import MAX_UNROLLED_STEPS, FalconHead, TargetParts
from tree.topology import Tree

V, H = 48, 32
CPU = torch.device("cpu")
SIZES = [
    {"block_size": 1},
    {"block_size": 2},
    {"block_size": 3, "num_layers": 2},
    {"block_size": 4, "mixer": "linear"},
    {"block_size": 2, "window": 5},
]


class Setup:
    """A random head on two slots, and what was fed to each slot."""

    def __init__(self, **sizes: int | str) -> None:
        torch.manual_seed(0)
        config = DrafterConfig(hidden_size=H, vocab_size=V, **sizes)  # type: ignore[arg-type]
        self.embedding = torch.nn.Embedding(V, H)
        self.weight = torch.randn(V, H)
        self.parts = TargetParts(self.embedding, lambda features: features @ self.weight.T)
        self.head = FalconHead(config).eval()
        self.k = config.block_size
        chain = [[0] * depth for depth in range(1, 3 * self.k + 1)]
        side = [[1] + [0] * depth for depth in range(2 * self.k)]
        self.tree = Tree.from_paths([*chain, *side])
        self.plan = build_plan(self.tree, self.k, CPU)
        self.head.unroll()
        self.drafter = FalconDrafter(self.head, self.parts, 2, 96, self.plan.num_rows)
        self.fed = [torch.zeros(0, dtype=torch.long)] * 2
        self.features = [torch.zeros(0, H)] * 2

    def prefill(self, slot: int, count: int) -> None:
        self.drafter.reset(slot)
        tokens, features = torch.randint(V, (count,)), torch.randn(count, H)
        self.drafter.prefill(slot, tokens, features)
        self.fed[slot], self.features[slot] = tokens, features

    def extend(self, counts: list[int]) -> None:
        width = max(counts)
        tokens, features = torch.randint(V, (2, width)), torch.randn(2, width, H)
        self.drafter.extend([0, 1], tokens, features, counts)
        for slot, count in enumerate(counts):
            self.fed[slot] = torch.cat((self.fed[slot], tokens[slot, :count]))
            self.features[slot] = torch.cat((self.features[slot], features[slot, :count]))

    def draft(self, slots: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Tokens [B,N] and each pass's logits [B,E,K,V]."""
        logits: list[Tensor] = []

        def scores(own: Tensor, depth: int) -> Tensor:
            assert depth == len(logits) * self.k + 1
            logits.append(own)
            return own

        roots = torch.stack([self.fed[slot][-1] for slot in slots])
        return self.drafter.draft(slots, roots, self.plan, scores), logits

    def expected(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Features [K,H] that the head predicts at the last block, right-aligned: [S], [S,H]."""
        offset = -len(tokens) % self.k
        return self.head(self.embedding(tokens)[None], features[None], offset)[0, -self.k :]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.inference_mode()
def test_passes_equal_the_teacher_forced_head(sizes: dict[str, int | str]) -> None:
    """After prefill, uneven steps and reuse of a slot, on every block of every pass."""
    setup = Setup(**sizes)
    chooser = random.Random(0)
    setup.prefill(0, 30)
    setup.prefill(1, 7)
    setup.extend([5, 2])
    setup.prefill(0, 11)
    for _ in range(6):
        setup.extend([chooser.randint(1, 5), chooser.randint(1, 5)])
    for slots in ([0, 1], [1]):
        drafted, logits = setup.draft(slots)
        for b, slot in enumerate(slots):
            check_passes(setup, slot, drafted[b], [own[b] for own in logits])


def check_passes(setup: Setup, slot: int, drafted: Tensor, logits: list[Tensor]) -> None:
    tree, k = setup.tree, setup.k
    for chain in (tree.paths.index((0,) * 3 * k), tree.paths.index((1, *(0,) * (2 * k - 1)))):
        tokens, features = setup.fed[slot], setup.features[slot]
        path = tree.path_to(chain)
        for number in range(len(path) // k):
            predicted = setup.expected(tokens, features)
            block = 0 if number == 0 else block_of(setup, number, path)
            found = logits[number][block]
            torch.testing.assert_close(found, predicted @ setup.weight.T, atol=1e-4, rtol=1e-4)
            best = found.topk(2).indices
            nodes = path[number * k : (number + 1) * k]
            ranks = [tree.ranks[node] for node in nodes]
            assert drafted[list(nodes)].tolist() == best[range(k), ranks].tolist()
            tokens = torch.cat((tokens, drafted[list(nodes)]))
            features = torch.cat((features, predicted))


def block_of(setup: Setup, number: int, path: tuple[int, ...]) -> int:
    """Index of the block that ends in the path's node at this pass."""
    end = path[number * setup.k - 1]
    nodes = setup.plan.passes[number].block_nodes.tolist()
    return next(index for index, block in enumerate(nodes) if block[-1] == end)


def test_a_plan_that_does_not_fit_the_scratch_is_refused() -> None:
    setup = Setup(block_size=2)
    setup.prefill(0, 8)
    small = FalconDrafter(setup.head, setup.parts, 2, 96, scratch=2)
    with pytest.raises(ValueError, match="room for 2"):
        small.draft([0], torch.tensor([1]), setup.plan, lambda logits, depth: logits)


def test_a_tree_deeper_than_a_step_can_feed_back_is_refused() -> None:
    tree = Tree.from_paths([[0] * depth for depth in range(1, MAX_UNROLLED_STEPS + 1)])
    with pytest.raises(DrafterError, match=f"at most {MAX_UNROLLED_STEPS - 1}"):
        build_plan(tree, 2, CPU)
