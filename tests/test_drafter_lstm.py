"""The packed LSTM against the one that it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from drafter.lstm import PackedLSTM, is_packable

H = 32


def lstm(dtype: torch.dtype) -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(2 * H, H, num_layers=2, batch_first=True).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("steps", [1, 2, 5, 70])
@torch.inference_mode()
def test_outputs_and_state_equal_those_of_the_plain_lstm(
    dtype: torch.dtype, batch: int, steps: int
) -> None:
    plain = lstm(dtype)
    if not is_packable(plain):
        pytest.skip(f"this CPU has no operator for {dtype}")
    packed = PackedLSTM(copy.deepcopy(plain))
    x = torch.randn(batch, steps, 2 * H, dtype=dtype)
    state = torch.randn(2, 2, 9, H, dtype=dtype)[:, :, 1 : 1 + batch]  # slots, as a view
    expected, last = plain(x, (state[0].contiguous(), state[1].contiguous()))
    found, after = packed(x, state)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(after, torch.stack(last), atol=tolerance, rtol=tolerance)


def test_the_plain_weights_are_freed_and_still_counted() -> None:
    plain = lstm(torch.float32)
    size = sum(parameter.nbytes for parameter in plain.parameters())
    packed = PackedLSTM(plain)
    assert sum(parameter.nbytes for parameter in packed.parameters()) == size
    assert all(parameter.is_meta for parameter in packed.parameters())


def test_types_without_an_operator_are_left_alone() -> None:
    assert is_packable(lstm(torch.float32))
    assert not is_packable(lstm(torch.float64))
