"""A layer's sum over ranks, added in the order of the ranks.

An all-reduce of more than two ranks cuts its rows into pieces and adds each in another order, by
the number of rows: plain decoding and a tree would not get the same bits. Two need no order, since
a + b = b + a.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.distributed import tensor_parallel
from transformers.distributed.tensor_parallel import RowwiseParallel

UNORDERED = 2  # ranks that need no order
OWN_SUMS = frozenset({"moe_tp_experts", "all_reduce"})  # styles whose sums stay as they are


class OrderedRowwise(RowwiseParallel):
    """transformers' split of a layer's inputs, but for the sum."""

    def transform_output_post_forward(self, module: Any, output: Tensor, mesh: Any) -> Tensor:
        """The partial product [...,O] of every rank, summed in float32, and the bias once."""
        output = output.contiguous()
        parts = [torch.empty_like(output) for _ in range(mesh.size())]
        dist.all_gather(parts, output, group=mesh.get_group())
        total = parts[0].float()
        for part in parts[1:]:
            total += part
        if module.bias is not None:
            total += module.bias.to_local()
        return total.to(output.dtype)


def with_ordered_sums(plan: dict[str, str]) -> dict[str, str]:
    """The plan with our sums in place of transformers', which learns of them here."""
    module: Any = tensor_parallel
    styles = module.ALL_PARALLEL_STYLES
    for style, ours in _ORDERED.items():
        styles.register(ours, OrderedRowwise(input_layouts=styles[style].input_layouts))
    return {name: _ORDERED.get(style, style) for name, style in plan.items()}


_ORDERED = {
    style: f"falcon_ordered_{style}" for style in ("rowwise", "rowwise_split_input", "rowwise_rep")
}
