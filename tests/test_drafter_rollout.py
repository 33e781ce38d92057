"""Rollouts in training: what each pass reads is what a draft would have it read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from drafter.config import DrafterConfig
from drafter.model import FalconHead
from drafter.rollout import roll_out

H, V, LENGTH, PASSES = 16, 20, 23, 3
SIZES: list[dict[str, Any]] = [
    {"block_size": 1, "mixer": "linear"},
    {"block_size": 3, "mixer": "linear", "num_layers": 2},
    {"block_size": 2, "mixer": "linear", "window": 5},
    {"block_size": 2, "mixer": "lstm"},
    {"block_size": 4, "mixer": "linear", "coupled": True},
    {"block_size": 3, "mixer": "lstm", "coupled": True, "window": 7},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.inference_mode()
def test_each_pass_reads_true_features_and_then_what_its_own_draft_foretold(
    sizes: dict[str, Any],
) -> None:
    """Pass p of the draft behind block a predicts what the head does when it is given, in place of
    the features of the p blocks behind a, what passes 0 to p - 1 predicted there.
    """
    torch.manual_seed(0)
    head = FalconHead(DrafterConfig(hidden_size=H, vocab_size=V, num_heads=2, **sizes)).eval()
    k = head.config.block_size
    if head.coupling is not None:
        torch.nn.init.normal_(head.coupling.told.weight, std=0.3)
        torch.nn.init.normal_(head.coupling.start.weight, std=0.3)
    embeddings, features = torch.randn(2, LENGTH, H), torch.randn(2, LENGTH, H)
    told = torch.randn(2, LENGTH, k, H)
    for offset in range(k):
        passes = roll_out(head, embeddings, features, offset, told, PASSES)
        whole = range((LENGTH + offset) // k)  # blocks that the row's end does not cut
        for block in whole[1 : 1 - PASSES]:  # the true ones end with it
            read = features.clone()
            for number, predicted in enumerate(passes):
                own = slice((block + number) * k - offset, (block + number + 1) * k - offset)
                if number:
                    read[:, own] = passes[number - 1][:, own.start - k : own.stop - k]
                expected = head(embeddings, read, offset, told)[:, own]
                torch.testing.assert_close(predicted[:, own], expected)


def test_errors_of_later_passes_reach_the_earlier_ones() -> None:
    torch.manual_seed(0)
    head = FalconHead(DrafterConfig(hidden_size=H, vocab_size=V, num_heads=2, mixer="linear"))
    features = torch.randn(1, LENGTH, H, requires_grad=True)
    *_, last = roll_out(head, torch.randn(1, LENGTH, H), features, 0, None, 2)
    (gradient,) = torch.autograd.grad(last[:, 8:10, 0].sum(), features)
    assert gradient[:, 6:8].any()  # of block 3, from which pass 0 foretold block 4
    assert not gradient[:, 8:].any()
