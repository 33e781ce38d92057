"""Packed weights: the same bits as `F.linear`, alone and where siblings share their input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from drafter.target import preferred_dtype
from engine.packing import (
    PackedLinear,
    has_fbgemm,
    pack_linears,
    round_linears,
    rounded_copy,
)

pytestmark = pytest.mark.skipif(
    preferred_dtype(torch.device("cpu")) != torch.bfloat16, reason="packs only for bf16 units"
)


class Layer(nn.Module):
    """Queries, keys and values of one input, as decoder layers have them."""

    def __init__(self, biases: tuple[bool, bool, bool]) -> None:
        super().__init__()
        self.q_proj = nn.Linear(64, 96, bias=biases[0])
        self.k_proj = nn.Linear(64, 32, bias=biases[1])
        self.v_proj = nn.Linear(64, 32, bias=biases[2])
        self.o_proj = nn.Linear(96, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        out: Tensor = self.o_proj(query * torch.cat((key, value, key), dim=-1))
        return out


@pytest.mark.parametrize("biases", [(False,) * 3, (True,) * 3, (True, False, True)])
@torch.inference_mode()
def test_bits_equal_those_of_plain_layers(biases: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    plain = Layer(biases).to(torch.bfloat16)
    packed = copy.deepcopy(plain)
    assert pack_linears(packed) == 4
    for rows in (1, 16, 32):
        for _ in range(3):  # a new input each time: nothing of the last one may stay
            x = torch.randn(1, rows, 64, dtype=torch.bfloat16)
            assert torch.equal(plain(x), packed(x))


def test_shape_and_dtype_stay_visible() -> None:
    layer = Layer((True,) * 3).to(torch.bfloat16)
    pack_linears(layer)
    assert isinstance(layer.q_proj, PackedLinear)
    assert (layer.q_proj.weight.shape, layer.q_proj.weight.dtype) == ((96, 64), torch.bfloat16)


def test_float32_is_left_alone() -> None:
    assert pack_linears(Layer((True,) * 3)) == 0


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_few_rows_of_a_drafter_are_near_and_many_are_exact(bias: bool) -> None:
    torch.manual_seed(0)
    plain = Layer((bias,) * 3).to(torch.bfloat16)
    plain.q_proj.weight[3] = 0
    rounded = copy.deepcopy(plain)
    pack_linears(rounded)
    round_linears(rounded)
    for shape in ((64,), (1, 64), (1, 1, 1, 64), (2, 64), (1, 2, 4, 64)):
        x = torch.randn(*shape, dtype=torch.bfloat16)
        for own, true in ((rounded.q_proj, plain.q_proj), (rounded.v_proj, plain.v_proj)):
            found, wanted = own(x), true(x)
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            error = (found - wanted).float().norm() / wanted.float().norm()
            assert 0 < error < 0.02
    for rows in (9, 16):
        x = torch.randn(1, rows, 64, dtype=torch.bfloat16)
        assert torch.equal(rounded(x), plain(x))


@pytest.mark.parametrize("has_blocks", [False, True])
@torch.inference_mode()
def test_several_rows_of_large_weights_are_near(
    has_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take fbgemm's product where there is one, and are exact elsewhere."""
    if has_blocks and not has_fbgemm():
        pytest.skip("this processor has no such product")
    torch.manual_seed(0)
    layer = nn.Linear(256, 2048).to(torch.bfloat16)
    monkeypatch.setattr("engine.packing.has_fbgemm", lambda: has_blocks)
    whole = nn.Sequential(copy.deepcopy(layer))
    pack_linears(whole)
    round_linears(whole)
    for rows in range(1, 10):
        x = torch.randn(1, rows, 256, dtype=torch.bfloat16)
        found, wanted = whole(x), layer(x)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        error = (found - wanted).float().norm() / wanted.float().norm()
        is_near = rows <= (8 if has_blocks else 2)
        assert 0 < error < 0.02 if is_near else error == 0


@pytest.mark.parametrize("width", [24, 40, 172])
@torch.inference_mode()
def test_widths_that_the_eight_bit_product_cannot_do_stay_exact(width: int) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(width, 63, bias=False)).to(torch.bfloat16)
    x = torch.randn(1, width, dtype=torch.bfloat16)
    wanted = layer(x)
    pack_linears(layer)
    round_linears(layer)
    assert torch.equal(layer(x), wanted)
    assert rounded_copy(layer[0]) is layer[0]


@torch.inference_mode()
def test_a_lent_layer_leaves_the_target_as_it_was() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 5000, bias=False)).to(torch.bfloat16)
    x = torch.randn(1, 64, dtype=torch.bfloat16)
    wanted = layer(x)
    assert rounded_copy(layer[0]) is layer[0]
    pack_linears(layer)
    lent = rounded_copy(layer[0])
    assert not torch.equal(lent(x), wanted)
    assert (lent(x) - wanted).float().norm() < 0.02 * wanted.float().norm()
    assert torch.equal(layer(x), wanted)
