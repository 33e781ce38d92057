"""Medusa heads: what they read, how they learn, and that drafting with them changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drafter.config import DrafterError, MedusaConfig
from drafter.data import Batch
from drafter.distillation import LossWeights
from drafter.medusa import MedusaDrafter, MedusaHead
from drafter.model import TargetParts
from drafter.naming import Naming
from drafter.plan import build_plan
from drafter.teaching import MedusaTeaching
from tree.topology import Tree

H, V, K = 8, 13, 3
TREE = Tree.from_paths([[0], [0, 0], [0, 0, 0], [1], [1, 0], [0, 1]])


@pytest.fixture
def parts() -> TargetParts:
    torch.manual_seed(2)
    output = torch.nn.Linear(H, V, bias=False)
    return TargetParts(torch.nn.Embedding(V, H), output)


@pytest.fixture
def head() -> MedusaHead:
    torch.manual_seed(3)
    head = MedusaHead(MedusaConfig(hidden_size=H, vocab_size=V, block_size=K))
    for weight in head.parameters():
        torch.nn.init.normal_(weight)
    return head


def best(logits: Tensor, naming: Naming) -> Tensor:
    assert (naming.number, naming.depth, naming.share) == (0, 1, 1.0)
    return logits.topk(naming.width).indices


@torch.inference_mode()
def test_every_level_is_named_by_its_own_head(head: MedusaHead) -> None:
    drafter = MedusaDrafter(head, num_slots=3, like=torch.zeros(1))
    features = torch.randn(2, 4, H)
    drafter.prefill(2, torch.arange(5), features[0])
    drafter.prefill(0, torch.arange(4), features[1, :3])
    plan = build_plan(TREE, K, torch.device("cpu"))
    tokens = drafter.draft([0, 2], torch.tensor([7, 8]), plan, best)
    for row, newest in zip(tokens, (features[1, 2], features[0, 3]), strict=True):
        expected = head(newest).topk(2).indices  # [K, 2]
        for node in range(1, TREE.num_nodes):
            assert row[node] == expected[TREE.depths[node] - 1, TREE.ranks[node]]
    assert tokens[:, 0].tolist() == [7, 8]


@torch.inference_mode()
def test_what_is_fed_back_is_read(head: MedusaHead) -> None:
    drafter = MedusaDrafter(head, num_slots=2, like=torch.zeros(1))
    features = torch.randn(2, 3, H)
    for slot in range(2):
        drafter.prefill(slot, torch.arange(5), torch.randn(4, H))
    drafter.extend([0, 1], torch.zeros(2, 3, dtype=torch.long), features, [1, 3])
    assert drafter.lengths == [5, 7]
    assert torch.equal(drafter.newest, torch.stack((features[0, 0], features[1, 2])))
    drafter.adopt(0, 1, 6)
    assert drafter.lengths == [5, 7]  # the newest is to be read again
    assert not drafter.newest[0].any()  # nothing of who had the slot before
    drafter.rewind(1, 2)
    assert drafter.lengths[1] == 1


def test_heads_begin_as_the_target_and_learn_their_distance(
    head: MedusaHead, parts: TargetParts
) -> None:
    """A feature that tells what comes 1, 2 and 3 places later: heads must find each."""
    torch.manual_seed(4)
    fresh = MedusaHead(MedusaConfig(hidden_size=H, vocab_size=V, block_size=K))
    teaching = MedusaTeaching(fresh, parts, LossWeights())
    sample = torch.randn(2, H)
    torch.testing.assert_close(fresh(sample)[:, 1], parts.head(sample))
    cycle = torch.randn(5, H)  # position i has feature i % 5
    features = cycle.repeat(6, 1)[None]
    count = features.shape[1]
    is_answer = torch.ones(1, count, dtype=torch.bool)
    batch = Batch(torch.zeros(1, count, dtype=torch.long), is_answer, count)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.05)
    for _ in range(60):
        losses = teaching.losses(batch, features, 0.0, torch.Generator())
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = teaching.measure(batch, features)
    assert measured.ranks.shape == (count - K - 1, K)
    assert not measured.ranks.any()  # every head's first choice is the target's pick


def test_only_answers_count(parts: TargetParts) -> None:
    fresh = MedusaHead(MedusaConfig(hidden_size=H, vocab_size=V, block_size=2))
    teaching = MedusaTeaching(fresh, parts, LossWeights())
    features = torch.randn(1, 9, H)
    is_answer = torch.zeros(1, 9, dtype=torch.bool)
    is_answer[0, 5:8] = True  # x_5, x_6, x_7
    batch = Batch(torch.zeros(1, 9, dtype=torch.long), is_answer, 9)
    before = teaching.losses(batch, features, 0.0, torch.Generator()).token
    changed = features.clone()
    changed[0, 7:] = 9.0  # f_7 names x_8, which is no answer; f_6 names x_7
    changed[0, :2] = 9.0  # f_3 is the first to foretell an answer by head 0, f_2 by head 1
    assert teaching.losses(batch, changed, 0.0, torch.Generator()).token == before
    changed[0, 2] = 9.0
    assert teaching.losses(batch, changed, 0.0, torch.Generator()).token != before
    assert len(teaching.measure(batch, features).ranks) == 2  # x_5 x_6 and x_6 x_7


@pytest.mark.parametrize("sizes", [{"block_size": 0}, {"block_size": 9}, {"num_layers": 0}])
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(DrafterError, match=next(iter(sizes))):
        MedusaConfig(hidden_size=H, vocab_size=V, **sizes)
