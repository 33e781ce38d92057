"""Weights laid out once for the CPU's matrix kernels.

`F.linear` hands oneDNN plain weights, which it rearranges on every call; for the few rows of a step
that costs as much as the product. Here they are packed at load, and layers that read one input
become one product (docs/decisions.md, "Packed weights").
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drafter.target import preferred_dtype

PACKED_ROWS = 16  # the layout is chosen for so many rows; any number works
PART_ROWS = 4096  # of a weight that are rounded at once
MOST_ROUNDED = 8  # rows; of more the exact product takes no longer in bfloat16
FBGEMM = "fbgemm"
ROUNDED_WIDTH = 32  # torch's eight-bit product reads past rows of other widths, or crashes
# So much work of one product and `_weight_int8pack_mm`, which takes each row by itself, is slower
# than fbgemm's. Of float32 rows it always is.
ROWWISE_WORK = 1 << 20

# Siblings that a decoder layer applies to one input: they become one product.
SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class PackedLinears(nn.Module):
    """Linear layers of one input as a single product over packed weights."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.cat(tuple(linear.weight.detach() for linear in linears))
        self.sizes = [linear.out_features for linear in linears]
        biases = tuple(linear.bias for linear in linears if linear.bias is not None)
        self.bias = torch.cat(biases) if biases else None
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
        self.multiply = torch.ops.mkldnn._linear_pointwise.default
        self.input: Tensor | None = None
        self.outputs: tuple[Tensor, ...] = ()

    def output(self, index: int, x: Tensor) -> Tensor:
        """The product of x [...,I] with layer `index`; all are computed when a new x comes."""
        if len(self.sizes) == 1:
            return self.product(x)
        if self.input is not x:
            self.input, self.outputs = x, torch.split(self.product(x), self.sizes, dim=-1)
        return self.outputs[index]

    def product(self, x: Tensor) -> Tensor:
        """The products of x [...,I] with all layers, side by side."""
        product: Tensor = self.multiply(x, self.packed, self.bias, "none", [], "")
        return product


class RoundedLinears(PackedLinears):
    """For a drafter, which need not be exact: few rows are multiplied by weights of eight bits, one
    scale to an output. More rows are computed as ever.
    """

    def __init__(self, exact: PackedLinears) -> None:
        nn.Module.__init__(self)
        self.sizes, self.bias = exact.sizes, exact.bias
        self.packed, self.multiply = exact.packed, exact.multiply
        self.input, self.outputs = None, ()
        weight = exact.packed.to_dense()  # [O, I]
        scales = (weight.abs().amax(-1).float() / 127).clamp_(min=1e-30).to(weight.dtype)
        rounded = torch.empty_like(weight, dtype=torch.int8)
        for first in range(0, len(weight), PART_ROWS):
            part = slice(first, first + PART_ROWS)
            ratio = weight[part].float() / scales[part, None].float()
            rounded[part] = ratio.round_().clamp_(-127, 127)
        # Rows that the row-wise product takes, and those that fbgemm's does.
        is_rowwise = weight.dtype == torch.bfloat16
        self.few = max(1, min(MOST_ROUNDED, ROWWISE_WORK // weight.numel())) if is_rowwise else 0
        self.several = MOST_ROUNDED if self.few < MOST_ROUNDED and has_fbgemm() else self.few
        self.rowwise = (rounded, scales) if self.few else None
        self.blocked = (
            block_weights(rounded, scales, self.bias) if self.several > self.few else None
        )
        # Sums of two products overflow where the processor has no instruction for four.
        self.saves_bit = not torch.cpu.get_capabilities().get("avx512_vnni")

    def product(self, x: Tensor) -> Tensor:
        """The products of x [...,I] with all layers, side by side."""
        rows = x.numel() // x.shape[-1]
        if rows > self.several:
            return super().product(x)
        flat, shape = x.reshape(rows, -1), (*x.shape[:-1], -1)
        if rows > self.few:
            multiply = torch.ops.quantized.linear_dynamic
            whole: Tensor = multiply(flat.float(), self.blocked, self.saves_bit)
            return whole.to(x.dtype).view(shape)
        assert self.rowwise is not None
        product = torch._weight_int8pack_mm(flat, *self.rowwise).view(shape)
        return product if self.bias is None else product + self.bias


class PackedLinear(nn.Module):
    """Stands for one `nn.Linear`. `weight` is there for its shape and dtype only."""

    def __init__(self, linear: nn.Linear | PackedLinear, shared: PackedLinears, index: int) -> None:
        super().__init__()
        self.weight: Tensor = linear.weight.detach().to("meta")
        self.shared, self.index = shared, index

    def forward(self, x: Tensor) -> Tensor:
        return self.shared.output(self.index, x)


def pack_linears(model: nn.Module) -> int:
    """Replace every `nn.Linear` on the CPU below `model` that is of the dtype which this CPU
    multiplies best; how many there were.

    The plain weights are freed unless something else holds them, as embeddings do tied ones.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch
        return 0
    count = 0
    for parent in list(model.modules()):
        packable = {n: c for n, c in parent.named_children() if _is_packable(c)}
        for names in _groups(packable):
            shared = PackedLinears([packable[name] for name in names])
            for index, name in enumerate(names):
                setattr(parent, name, PackedLinear(packable[name], shared, index))
            count += len(names)
    return count


def round_linears(model: nn.Module) -> None:
    """Let the packed layers below a drafter's `model` multiply few rows by rounded weights."""
    rounded: dict[PackedLinears, PackedLinears] = {}
    for layer in [module for module in model.modules() if can_round(module)]:
        if layer.shared not in rounded:
            rounded[layer.shared] = RoundedLinears(layer.shared)
        layer.shared = rounded[layer.shared]


def rounded_copy(layer: nn.Module) -> nn.Module:
    """A layer that multiplies few rows by rounded weights, or the layer itself where none can."""
    if not can_round(layer):
        return layer
    return PackedLinear(layer, RoundedLinears(layer.shared), layer.index)


def can_round(layer: nn.Module) -> TypeGuard[PackedLinear]:
    """Whether it is packed, not rounded, and of a dtype and width that torch's eight-bit products
    take.
    """
    if not isinstance(layer, PackedLinear) or isinstance(layer.shared, RoundedLinears):
        return False
    has_product = layer.weight.dtype == torch.bfloat16 or has_fbgemm()
    return has_product and layer.weight.shape[-1] % ROUNDED_WIDTH == 0


def joint_product(*layers: nn.Module) -> Callable[[Tensor], Tensor]:
    """The product of one input with all `layers`, side by side: x [...,I] -> [..., sum of O].

    The layers are all that were packed together, or plain ones, whose weights are then copied.
    """
    packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
    if packed:
        return packed[0].shared.product
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    return lambda x: F.linear(x, weight, bias)


def block_weights(rounded: Tensor, scales: Tensor, bias: Tensor | None) -> Any:
    """Weights of eight bits [O,I] with scales [O], and the bias, as fbgemm has them."""
    engine = torch.backends.quantized.engine
    zeros = torch.zeros(len(rounded), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this will go, one day
        weight = torch._make_per_channel_quantized_tensor(rounded, scales.double(), zeros, 0)
    try:
        torch.backends.quantized.engine = FBGEMM
        return torch.ops.quantized.linear_prepack(weight, None if bias is None else bias.float())
    finally:
        torch.backends.quantized.engine = engine


def has_fbgemm() -> bool:
    """Whether torch multiplies rows by blocks of eight-bit weights."""
    is_there = hasattr(torch.ops.quantized, "linear_dynamic") and hasattr(
        torch, "_make_per_channel_quantized_tensor"
    )
    engines = torch.backends.quantized.supported_engines
    return is_there and FBGEMM in engines


def _groups(linears: dict[str, nn.Linear]) -> list[tuple[str, ...]]:
    """Names that share an input and agree on having a bias together, all others alone."""
    together = [
        names
        for names in SHARED_INPUT
        if set(names) <= linears.keys() and len({linears[n].bias is None for n in names}) == 1
    ]
    taken = {name for names in together for name in names}
    return together + [(name,) for name in linears if name not in taken]


def _is_packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == preferred_dtype(weight.device)
