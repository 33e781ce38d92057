"""Coupled slots: what they begin as, and who is told what."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from drafter.config import DrafterConfig, DrafterError
from drafter.coupling import block_ends, coupled_weights
from drafter.model import FalconHead

H, V, LENGTH = 32, 40, 17


def pair(block_size: int, num_layers: int = 1) -> tuple[FalconHead, FalconHead]:
    """A head with blocks of one, and one with coupled slots that has grown from it."""
    torch.manual_seed(0)
    config = DrafterConfig(
        hidden_size=H, vocab_size=V, block_size=1, num_layers=num_layers, mixer="linear"
    )
    one = FalconHead(config)
    grown = FalconHead(msgspec.structs.replace(config, block_size=block_size, coupled=True))
    weights = coupled_weights(one.state_dict(), block_size)
    grown.load_state_dict(grown.state_dict() | weights)
    return one, grown


def told_much(block_size: int) -> FalconHead:
    """A head to whose slots it matters what they are told."""
    _, head = pair(block_size)
    assert head.coupling is not None
    for weight in head.coupling.told.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return head


def inputs(block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, features, and what is told."""
    told = torch.randn(2, LENGTH, block_size, H)
    return torch.randn(2, LENGTH, H), torch.randn(2, LENGTH, H), told


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("block_size", [2, 3, 4])
@torch.inference_mode()
def test_all_slots_begin_as_the_one_they_grew_from(block_size: int, num_layers: int) -> None:
    one, grown = pair(block_size, num_layers)
    embeddings, features, told = inputs(block_size)
    expected = one(embeddings, features, 0)
    for offset in range(block_size):
        found = grown(embeddings, features, offset, told)
        ends = block_ends(LENGTH, block_size, offset)
        blocks = (torch.arange(LENGTH) + offset) // block_size
        torch.testing.assert_close(found, expected[:, ends[blocks]])


@pytest.mark.parametrize("block_size", [2, 3, 4])
@torch.inference_mode()
def test_a_slot_is_told_the_root_of_its_block_and_what_was_named_since(block_size: int) -> None:
    grown = told_much(block_size)
    embeddings, features, told = inputs(block_size)
    for offset in range(block_size):
        before = grown(embeddings, features, offset, told)
        slots = (torch.arange(LENGTH) + offset) % block_size
        for back in range(block_size):
            other = told.clone()
            other[:, :, back, : H // 2] += 1.0
            changed = (grown(embeddings, features, offset, other) != before).any(-1)
            assert torch.equal(changed, (slots >= back).expand(2, -1))


@torch.inference_mode()
def test_how_small_embeddings_are_makes_no_difference_to_what_is_told() -> None:
    grown = told_much(3)
    embeddings, features, told = inputs(3)
    expected = grown(embeddings, features, 0, told)
    found = grown(embeddings, features, 0, told / 1000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@torch.inference_mode()
def test_rows_of_a_block_see_its_end_and_nothing_behind_it() -> None:
    _, grown = pair(2)
    embeddings, features, told = inputs(2)
    before = grown(embeddings, features, 0, told)
    features[:, 9] += 1.0  # the second position of block 4
    changed = (grown(embeddings, features, 0, told) != before).any(-1).any(0)
    assert changed.tolist() == [position >= 8 for position in range(LENGTH)]


def test_block_ends_of_the_docstring() -> None:
    assert block_ends(6, 2, 1).tolist() == [0, 2, 4, 5]
    assert block_ends(6, 2, 0).tolist() == [1, 3, 5]


def test_one_slot_cannot_be_coupled() -> None:
    with pytest.raises(DrafterError, match="block_size of 2 to 4, not 1"):
        DrafterConfig(hidden_size=H, vocab_size=V, block_size=1, coupled=True)
