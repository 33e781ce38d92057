"""How a request picks its tokens: the one rule for greedy and sampling, target and drafter.

At absolute position t the token is argmax_v(processed_logits[v] / temperature + G(seed, t, v)), and
plain argmax at temperature 0. `adjust` comes first: it is what depends on the tokens so far. The
drafter ranks its candidates by the same sum over its own logits, so what it proposes first is what
the target will most likely pick.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from functools import cached_property

import torch
from torch import Tensor

from .messages import SamplingParams, TokenLogprobs
from .noise import gumbel, hash_tokens, position_keys
from .processors import Processors
from .sequence import Sequence

RIVALS = 16  # so many best tokens share a chance between them
SHORTLIST = 256  # so many best logits are ranked for a draft that is sampled
NARROW_SHORTLIST = 64  # where sampling is truncated to the likeliest tokens anyway
NUCLEUS_WIDTH = 256  # so many best logits are tried before a whole row is sorted for top_p


class Sampler:
    """Scores logits for a batch of requests; `argmax` of the scores is the pick."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device

    @cached_property
    def token_hashes(self) -> Tensor:
        return hash_tokens(self.vocab_size, self.device)

    def adjust(
        self,
        logits: Tensor,
        sequences: Items[Sequence],
        positions: Items[Items[int]],
        paths: Items[Items[int]],
    ) -> Tensor:
        """logits [B,...,R,V] after each request's bias, bans, penalties, grammar (`processors.py`).

        Row r of sequence b picks the token at `positions[b][r]`; `paths[b]` follow its final ids.
        Where no request asks for any of it the logits come back as they are.
        """
        if not any(s.request.changes_logits for s in sequences):
            return logits
        rows = logits.unbind()
        adjusted = [
            self._processors(sequence).apply(own, where, path)
            if sequence.request.changes_logits
            else own
            for own, sequence, where, path in zip(rows, sequences, positions, paths, strict=True)
        ]
        if all(own is one for own, one in zip(rows, adjusted, strict=True)):
            return logits
        return torch.stack([one.float() for one in adjusted])

    def _processors(self, sequence: Sequence) -> Processors:
        """The sequence's own, which have counted all its final tokens."""
        if sequence.processors is None:
            sequence.processors = Processors(
                sequence.request, self.vocab_size, self.device, sequence.matcher
            )
        sequence.processors.count(sequence.ids)
        return sequence.processors

    def scores(
        self, logits: Tensor, params: Items[SamplingParams], positions: Items[Items[int]]
    ) -> Tensor:
        """Scores [B,R,V] for logits [B,...,R,V]; row r of request b names `positions[b][r]`.

        Greedy requests' logits come back as they are. Leading dimensions between B and R (blocks)
        share the noise of their position.
        """
        if all(p.temperature == 0 for p in params):
            return logits
        rows = []
        for own, p, where in zip(logits, params, positions, strict=True):
            if p.temperature == 0:
                rows.append(own.float())
                continue
            keys = position_keys([p.seed] * len(where), where).to(self.device)
            rows.append(processed(own, p) + gumbel(keys, self.token_hashes))
        return torch.stack(rows)

    def rank(
        self,
        logits: Tensor,
        params: Items[SamplingParams],
        positions: Items[Items[int]],
        width: int,
    ) -> Tensor:
        """Tokens [B,...,R,width] that the drafter proposes, best first, for its logits [B,...,R,V].

        By their scores, but looked for among the best few logits: noise for a whole vocabulary
        would cost more than drafting, and what is missed costs acceptance, never exactness.
        """
        if all(p.temperature == 0 for p in params):
            return best_ids(logits, width)
        ranked = []
        for own, p, where in zip(logits, params, positions, strict=True):
            scores, ids = self.shortlist(own, p, where, width)
            best = best_ids(scores, width)
            ranked.append(best if ids is None else ids.gather(-1, best))
        return torch.stack(ranked)

    def rank_with_chances(
        self,
        logits: Tensor,
        params: Items[SamplingParams],
        positions: Items[Items[int]],
        width: int,
        sharpness: float,
    ) -> tuple[Tensor, Tensor]:
        """`rank`, and the log chances [B,...,R,width] that the target picks those tokens.

        The drafter's logits are off the target's by an error, of which `sharpness` is the inverse
        scale. The noise by which a request samples is the same in both.
        """
        if all(p.temperature == 0 for p in params):
            return _best_with_chances(logits, width, sharpness)
        ranked, chances = [], []
        for own, p, where in zip(logits, params, positions, strict=True):
            scores, ids = self.shortlist(own, p, where, width)
            best, own_chances = _best_with_chances(
                scores, width, sharpness * (p.temperature or 1.0)
            )
            ranked.append(best if ids is None else ids.gather(-1, best))
            chances.append(own_chances)
        return torch.stack(ranked), torch.stack(chances)

    def shortlist(
        self, logits: Tensor, params: SamplingParams, where: Items[int], width: int
    ) -> tuple[Tensor, Tensor | None]:
        """Scores [...,R,n] of the likeliest tokens of one request's logits [...,R,V], and their ids
        [...,R,n], None for those of all tokens.
        """
        if params.temperature == 0:
            return logits, None
        shortlist = NARROW_SHORTLIST if params.is_truncated else SHORTLIST
        if not width <= shortlist < logits.shape[-1]:
            return self.scores(logits[None], [params], [where])[0], None
        few = logits.topk(shortlist)
        keys = position_keys([params.seed] * len(where), where).to(self.device)
        noise = gumbel(keys, self.token_hashes[few.indices])
        return processed(few.values, params) + noise, few.indices

    def pick(self, logits: Tensor, params: Items[SamplingParams], where: Items[int]) -> list[int]:
        """The tokens that logits [B,V] give at positions `where` [B]."""
        scores = self.scores(logits[:, None], params, [[position] for position in where])
        picks: list[int] = scores[:, 0].max(-1).indices.tolist()  # sync: the walk runs on the host
        return picks


def logprobs(logits: Tensor, picks: Items[int], count: int) -> list[TokenLogprobs]:
    """Log-probabilities, in float32, of picks [P] in logits [P,V], with the `count` likeliest."""
    own = logits.float().log_softmax(-1)
    picked = own.gather(-1, torch.tensor(picks, device=own.device)[:, None])  # [P, 1]
    best = own.topk(min(count, own.shape[-1]), dim=-1)  # [P, count]
    table = torch.cat((picked.double(), best.values.double(), best.indices.double()), dim=-1)
    width = best.values.shape[-1]
    return [
        TokenLogprobs(row[0], [int(token) for token in row[1 + width :]], row[1 : 1 + width])
        for row in table.tolist()  # sync: only for requests that ask
    ]


def best_ids(scores: Tensor, width: int) -> Tensor:
    """Indices [...,width] of the largest, best first."""
    if width == 1:
        return scores.max(-1, keepdim=True).indices  # a third of the price of topk
    return scores.topk(width).indices


def _best_with_chances(scores: Tensor, width: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """`best_ids`, and their log chances [...,width] if one of the best few is picked."""
    best = scores.topk(max(width, min(RIVALS, scores.shape[-1])))
    chances = (best.values.float() * sharpness).log_softmax(-1)
    return best.indices[..., :width], chances[..., :width]


def processed(logits: Tensor, params: SamplingParams) -> Tensor:
    """logits [...,V] / temperature in float32, -inf outside top_k, top_p and min_p.

    top_k keeps the k largest; then top_p the smallest set of likeliest tokens whose mass reaches
    it; then min_p all within that factor of the likeliest. Ties with the last one kept are kept.
    """
    scaled = logits.float()
    scaled = (scaled - scaled.amax(-1, keepdim=True)) / params.temperature
    if 0 < params.top_k < scaled.shape[-1]:
        floor = scaled.topk(params.top_k).values[..., -1:]
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    if params.top_p < 1.0:
        scaled = scaled.masked_fill(scaled < nucleus_floor(scaled, params.top_p), float("-inf"))
    if params.min_p > 0.0:
        floor = scaled.amax(-1, keepdim=True) + torch.tensor(params.min_p).log()
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    return scaled


def nucleus_floor(scaled: Tensor, top_p: float) -> Tensor:
    """The smallest logit inside the nucleus: [...,V] -> [...,1]."""
    total = scaled.logsumexp(-1, keepdim=True)
    width = min(NUCLEUS_WIDTH, scaled.shape[-1])
    best = scaled.topk(width).values
    mass = (best - total).exp().cumsum(-1)
    if width < scaled.shape[-1] and bool((mass[..., -1] < top_p).any()):  # sync: rare wide rows
        best = scaled.sort(-1, descending=True).values
        mass = (best - total).exp().cumsum(-1)
    needed = (mass < top_p).sum(-1, keepdim=True).clamp_(max=best.shape[-1] - 1)
    return best.gather(-1, needed)
