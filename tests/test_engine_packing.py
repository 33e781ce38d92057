"""Packed weights: the products of `F.linear`, alone and where siblings share their input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from drafter.target import preferred_dtype
from engine.packing import (
    MOST_ROUNDED,
    PackedLinear,
    has_fbgemm,
    pack_linears,
    round_linears,
    rounded_copy,
)

DTYPE = preferred_dtype(torch.device("cpu"))  # the one that is packed
IS_FLOAT32 = DTYPE is torch.float32


def check_product(found: Tensor, wanted: Tensor) -> None:
    """bfloat16 has one kernel and equal bits, float32 two kernels that add in different orders."""
    if IS_FLOAT32:
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(found, wanted)


def check_near(found: Tensor, wanted: Tensor) -> None:
    """As near as eight bits are, and no nearer; seven where the CPU would overflow."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    error = (found - wanted).float().norm() / wanted.float().norm()
    assert 1e-4 < error < (0.03 if IS_FLOAT32 else 0.02)


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
def test_products_equal_those_of_plain_layers(biases: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    plain = Layer(biases).to(DTYPE)
    packed = copy.deepcopy(plain)
    assert pack_linears(packed) == 4
    for rows in (1, 16, 32):
        for _ in range(3):  # a new input each time: nothing of the last one may stay
            x = torch.randn(1, rows, 64, dtype=DTYPE)
            check_product(packed(x), plain(x))


def test_shape_and_dtype_stay_visible() -> None:
    layer = Layer((True,) * 3).to(DTYPE)
    pack_linears(layer)
    assert isinstance(layer.q_proj, PackedLinear)
    assert (layer.q_proj.weight.shape, layer.q_proj.weight.dtype) == ((96, 64), DTYPE)


def test_what_this_cpu_multiplies_less_well_is_left_alone() -> None:
    other = torch.bfloat16 if IS_FLOAT32 else torch.float32
    assert pack_linears(Layer((True,) * 3).to(other)) == 0


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_few_rows_of_a_drafter_are_near_and_many_are_exact(bias: bool) -> None:
    torch.manual_seed(0)
    plain = Layer((bias,) * 3).to(DTYPE)
    plain.q_proj.weight[3] = 0
    rounded = copy.deepcopy(plain)
    pack_linears(rounded)
    round_linears(rounded)
    for shape in ((64,), (1, 64), (1, 1, 1, 64), (2, 64), (1, 2, 4, 64)):
        x = torch.randn(*shape, dtype=DTYPE)
        for own, true in ((rounded.q_proj, plain.q_proj), (rounded.v_proj, plain.v_proj)):
            check_near(own(x), true(x))
    for rows in (MOST_ROUNDED + 1, MOST_ROUNDED + 8):
        x = torch.randn(1, rows, 64, dtype=DTYPE)
        check_product(rounded(x), plain(x))


@pytest.mark.parametrize("has_blocks", [False, True])
@torch.inference_mode()
def test_several_rows_of_large_weights_are_near(
    has_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take fbgemm's product where there is one, and are exact elsewhere."""
    if has_blocks and not has_fbgemm():
        pytest.skip("this processor has no such product")
    torch.manual_seed(0)
    layer = nn.Linear(256, 2048).to(DTYPE)
    monkeypatch.setattr("engine.packing.has_fbgemm", lambda: has_blocks)
    whole = nn.Sequential(copy.deepcopy(layer))
    pack_linears(whole)
    round_linears(whole)
    rowwise = 0 if IS_FLOAT32 else 2
    for rows in range(1, MOST_ROUNDED + 2):
        x = torch.randn(1, rows, 256, dtype=DTYPE)
        check = check_near if rows <= (MOST_ROUNDED if has_blocks else rowwise) else check_product
        check(whole(x), layer(x))


@pytest.mark.parametrize("width", [24, 40, 172])
@torch.inference_mode()
def test_widths_that_the_eight_bit_product_cannot_do_stay_exact(width: int) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(width, 63, bias=False)).to(DTYPE)
    x = torch.randn(1, width, dtype=DTYPE)
    wanted = layer(x)
    pack_linears(layer)
    round_linears(layer)
    check_product(layer(x), wanted)
    assert rounded_copy(layer[0]) is layer[0]


@torch.inference_mode()
def test_a_lent_layer_leaves_the_target_as_it_was() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(64, 5000, bias=False)).to(DTYPE)
    x = torch.randn(1, 64, dtype=DTYPE)
    wanted = layer(x)
    assert rounded_copy(layer[0]) is layer[0]
    pack_linears(layer)
    lent = rounded_copy(layer[0])
    check_near(lent(x), wanted)
    check_product(layer(x), wanted)
