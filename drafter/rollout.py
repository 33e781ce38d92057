"""Whole drafts in training: passes that read what the passes before them foretold.

A draft's first pass reads true features, each later one those that the pass before it predicted
(`draft.py`). A head that was taught on true features alone has never met its own errors, which grow
from pass to pass. So passes follow one another here as there, for all blocks of a row at once, and
each learns (harmonized learning, Zhang et al. 2024; training-time test, Li et al. 2025). Tokens are
the target's own: what is drafted behind a wrong one is lost anyhow.

    K=2, pass 2 of the draft whose root is behind block a: what its rows, in block c, see

    reading        of true features      of pass 0's     of pass 1's
    block          ... a  b  c           a  b  c         a  b  c
    seen            x  x  .  .           .  x  .         .  .  x
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import FalconHead, Reading


def roll_out(
    head: FalconHead,
    embeddings: Tensor,
    features: Tensor,
    offset: int,
    told: Tensor | None,
    passes: int,
) -> list[Tensor]:
    """Predictions [B,S,H] of each pass, of the first from true features as `FalconHead.forward`'s;
    the arguments are its own. In pass p > 0 the first p + 1 blocks
    of a row mean nothing.
    """
    k = head.config.block_size
    readings: list[Reading] = []
    predictions: list[Tensor] = []
    states: Tensor | None = None
    for _ in range(passes):
        if predictions:
            features = F.pad(predictions[-1][:, :-k], (0, 0, k, 0))  # [B, S, H]
        x = torch.cat((embeddings, features), dim=-1)
        if isinstance(head.mixer, nn.LSTM):
            h, states = mix_by_block(head.mixer, x, k, offset, states)
        else:
            h = head.mixer(x)
        readings.append(head.reading(h))
        predictions.append(head.predict(readings, offset, told))
    return predictions


def mix_by_block(
    lstm: nn.LSTM, x: Tensor, block_size: int, offset: int, states: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run over x [B,S,2H], block by block: h [B,S,H] and the states behind the blocks
    [2,layers,B,N,H].

    Each block goes on from that behind the block before it in the pass before, `states`; without
    these, in its own.
    """
    length = x.shape[1]
    padded = F.pad(x, (0, 0, offset, -(length + offset) % block_size))
    blocks = padded.view(len(x), -1, block_size, x.shape[-1])  # [B, N, K, 2H]
    if states is None:
        state = x.new_zeros(2, lstm.num_layers, x.shape[0], lstm.hidden_size)
        mixed, behind = [], []
        for number, block in enumerate(blocks.unbind(1)):
            own = block[:, offset:] if number == 0 else block
            h, last = lstm(own, (state[0], state[1]))
            state = torch.stack(last)
            mixed.append(h)
            behind.append(state)
        return torch.cat(mixed, 1)[:, :length], torch.stack(behind, dim=3)
    before = F.pad(states[:, :, :, :-1], (0, 0, 1, 0)).flatten(2, 3)  # [2, layers, B*N, H]
    h, last = lstm(blocks.flatten(0, 1), (before[0].contiguous(), before[1].contiguous()))
    h = h.reshape(len(x), -1, lstm.hidden_size)  # [B, N*K, H]
    return h[:, offset : offset + length], torch.stack(last).view(states.shape)
