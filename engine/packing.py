"""Weights laid out once for the CPU's bfloat16 kernels.

`F.linear` hands oneDNN plain weights, which it rearranges on every call; for the few rows of a step
that costs as much as the product. Packing them at load gives the same bits and takes a fifth to a
quarter off a forward (docs/decisions.md, "Packed weights").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drafter.target import preferred_dtype

PACKED_ROWS = 16  # the layout is chosen for so many rows; any number works


class PackedLinear(nn.Module):
    """An `nn.Linear` whose weights are packed. `weight` is there for its shape and dtype only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to("meta")
        self.bias = linear.bias
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight, PACKED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out


def pack_linears(model: nn.Module) -> int:
    """Replace every bfloat16 `nn.Linear` on the CPU below `model`; how many there were.

    The plain weights are freed unless something else holds them, as embeddings do tied ones.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch
        return 0
    count = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and _is_packable(child.weight):
                setattr(parent, name, PackedLinear(child))
                count += 1
    return count


def _is_packable(weight: Tensor) -> bool:
    is_bf16_cpu = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return is_bf16_cpu and preferred_dtype(weight.device) == torch.bfloat16
