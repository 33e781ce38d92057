"""An LSTM whose weights are laid out once for the CPU's kernels.

`nn.LSTM` hands oneDNN plain weights, which it rearranges on every call; for the few steps of a
draft that costs more than the work itself (docs/decisions.md, "Packed LSTM").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MODE = 2  # what oneDNN's operator calls an LSTM


class PackedLSTM(nn.Module):
    """Stands for an `nn.LSTM`; `plain` is there for its shapes and dtype only."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.layers = [_pack(lstm, layer) for layer in range(lstm.num_layers)]
        self.plain = lstm.to("meta")

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x [B,S,I] and the state before it, [2 (h, c), layers, B, H], to h [B,S,H] and the state
        after it.
        """
        x = x.transpose(0, 1).contiguous()  # [S, B, I]; the operator takes other layouts for this
        before = state.contiguous().flatten(0, 1).unbind()  # h of each layer, then c of each
        hidden, cells = [], []
        for layer, weights in enumerate(self.layers):
            x, h, c, _ = torch.mkldnn_rnn_layer(
                x,
                *weights,
                before[layer],
                before[layer + len(self.layers)],
                reverse=False,
                batch_sizes=[],
                mode=MODE,
                hidden_size=state.shape[-1],
                num_layers=1,
                has_biases=True,
                bidirectional=False,
                batch_first=False,
                train=False,
            )
            hidden.append(h)
            cells.append(c)
        return x.transpose(0, 1), torch.stack(hidden + cells).view(state.shape)


def is_packable(lstm: nn.LSTM) -> bool:
    """Whether this CPU has the operator for the weights' type."""
    weight = lstm.all_weights[0][0]
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _pack(lstm: nn.LSTM, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A layer's weights for input and state, laid out, and their biases."""
    weights = [weight.detach() for weight in lstm.all_weights[layer]]
    of_input, of_state = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
        *weights[:2], lstm.hidden_size, reverse=False, has_biases=True, batch_first=False
    )
    return of_input, of_state, weights[2], weights[3]
