"""What a request does to the target's logits before temperature: bias, bans, penalties, grammar.

At the row that picks output token number i (from 0), behind the prompt and the output so far:

    + logit_bias                                      at its tokens
    -inf                                              at the request's stop ids while i < min_tokens
    / repetition_penalty if positive, * if not        at tokens that prompt or output hold
    - frequency_penalty * count - presence_penalty    at tokens that the output holds count times
    -inf                                              at tokens that the grammar does not allow

In a tree, "so far" ends with the path that leads to the row: two branches see different penalties,
and different tokens are allowed. Where the grammar allows nothing but stop ids, min_tokens yields.
All is float32 and concerns one row at a time, so how rows are grouped cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .messages import Submit

if TYPE_CHECKING:
    from .matcher import Matcher

_LARGEST = torch.finfo(torch.float32).max


class Processors:
    """Those of one request. They live with its sequence and count its final tokens once."""

    def __init__(
        self,
        request: Submit,
        vocab_size: int,
        device: torch.device,
        matcher: Matcher | None = None,
    ) -> None:
        self._params = request.sampling
        self._matcher = matcher
        self._length = 0  # of the final tokens
        self._prompt_length = len(request.prompt_ids)
        self._num_counted = 0
        bias = self._params.logit_bias
        stops = [token for token in request.stop_token_ids if 0 <= token < vocab_size]
        self._bias = torch.zeros(vocab_size, device=device)
        self._bias[list(bias)] = torch.tensor(list(bias.values()), device=device)
        self._is_stop = torch.zeros(vocab_size, dtype=torch.bool, device=device)  # [V]
        self._is_stop[stops] = True
        self._is_seen = torch.zeros_like(self._is_stop)  # [V], in prompt or output
        self._counts = torch.zeros_like(self._bias)  # [V], in the output

    def count(self, ids: Sequence[int]) -> None:
        """Take in what is new in `ids`, the final tokens of prompt and output."""
        self._length = len(ids)
        if self._matcher is not None:
            self._matcher.advance(ids[self._prompt_length :])
        if self._params.has_penalties and len(ids) > self._num_counted:
            output = max(self._num_counted, self._prompt_length)
            self._is_seen[list(ids[self._num_counted :])] = True
            self._counts = self._counted(ids[output:])
            self._num_counted = len(ids)

    def apply(self, logits: Tensor, positions: Sequence[int], path: Sequence[int]) -> Tensor:
        """logits [...,R,V] of rows that pick the tokens at `positions` [R], all behind `path`.

        They come back as they are where there is nothing to do.
        """
        allowed = self._allowed(positions, path)
        if self._params.logit_bias:
            logits = logits.float() + self._bias
        early = [at - self._prompt_length < self._params.min_tokens for at in positions]
        if any(early) and not (allowed is not None and self._is_over(allowed)):
            is_early = torch.tensor(early, device=logits.device)[:, None]  # [R, 1]
            logits = logits.float().masked_fill(is_early & self._is_stop, float("-inf"))
        if self._params.has_penalties:
            logits = self._penalized(logits.float(), path)
        if allowed is not None:
            behind = [at == self._length + len(path) for at in positions]
            is_behind = torch.tensor(behind, device=logits.device)[:, None]  # [R, 1]
            logits = logits.float().masked_fill(is_behind & ~allowed, float("-inf"))
        return logits

    def _allowed(self, positions: Sequence[int], path: Sequence[int]) -> Tensor | None:
        """[V] bool: what the grammar allows in a row right behind the path, if one is.

        What it allows in rows further on depends on tokens that are not known.
        """
        if self._matcher is None or self._length + len(path) not in positions:
            return None
        allowed = self._matcher.allowed(path)
        return None if allowed is None else allowed.to(self._is_stop.device)

    def _is_over(self, allowed: Tensor) -> bool:
        """Whether the grammar lets nothing but stop ids follow."""
        return not bool((allowed & ~self._is_stop).any())

    def _penalized(self, logits: Tensor, path: Sequence[int]) -> Tensor:
        factor = self._params.repetition_penalty
        if factor != 1.0:
            is_seen = self._is_seen.clone()
            is_seen[list(path)] = True
            repeated = torch.where(logits > 0, logits / factor, logits * factor)
            logits = torch.where(is_seen, repeated.clamp_(max=_LARGEST), logits)
        counts = self._counted(path)
        logits = logits - self._params.frequency_penalty * counts
        return logits - self._params.presence_penalty * (counts > 0)

    def _counted(self, tokens: Sequence[int]) -> Tensor:
        """The output's counts [V] with `tokens` behind it; sums of ones are exact in any order."""
        index = torch.tensor(list(tokens), dtype=torch.long, device=self._counts.device)
        return self._counts.index_add(0, index, torch.ones(len(index), device=index.device))


def check_ids(request: Submit, vocab_size: int) -> None:
    """Raises `ValueError` where the request names a token that the target does not have."""
    named = {
        "prompt ids": request.prompt_ids,
        "output ids": request.output_ids,
        "prediction ids": request.prediction_ids,
        "ids of logit_bias": request.sampling.logit_bias,
    }
    for name, ids in named.items():
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ValueError(f"{name} must be from 0 to {vocab_size - 1}")
