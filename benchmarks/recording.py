"""What a drafter names at every place of the model's own answers: the record of `tree/replay.py`.

The model has answered before. The drafter is taken to each place of an answer, and in all passes of
a draft the tokens that really follow stand in for the ones it would have named: its candidates
along the true path are those of any tree that goes there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.engine import Engine
from engine.messages import SamplingParams, Submit
from engine.sequence import Sequence as RunningSequence
from engine.speculative import SpeculativeDecoder
from tree.replay import Record
from tree.topology import RankPath, Tree

from .loading import engine_with

WIDTH = 16  # candidates of a place that are looked through


def record_answers(
    engine: Engine,
    depth: int,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    params: SamplingParams,
) -> list[Record]:
    """Take the engine's drafter along every answer, and look down to `depth` from each place."""
    decoder = engine_with(engine, chain(depth)).decoder
    return [
        record_answer(decoder, list(prompt), list(answer), params)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


@torch.inference_mode()
def record_answer(
    decoder: SpeculativeDecoder, prompt: list[int], answer: list[int], params: SamplingParams
) -> Record:
    """The record of one answer. `decoder` has one slot and drafts a chain."""
    assert decoder.drafter is not None
    ids = [*prompt, *answer]
    sequence = RunningSequence(Submit("record", ids, 1, params, []), slot=0)
    decoder.target.prefill(0, 0, ids[:-1])
    decoder.drafter.reset(0)
    record: list[RankPath] = []
    for length in range(len(prompt) - 1, len(ids) - 1):
        sequence.length = length
        decoder.drafts.catch_up(sequence)
        look = _Look(decoder, ids[length + 1 :], length, params)
        roots = torch.tensor(ids[length : length + 1], device=decoder.target.device)
        decoder.drafter.draft([0], roots, decoder.plan, look.rank)
        record.append(look.path)
    return record


class _Look:
    """One draft whose tokens are those that really follow; `path` are their ranks."""

    def __init__(
        self, decoder: SpeculativeDecoder, following: list[int], length: int, params: SamplingParams
    ) -> None:
        self.sampler = decoder.sampler
        self.following = following
        self.length = length
        self.params = params
        self.path: RankPath = ()

    def rank(self, logits: Tensor, depth: int, width: int) -> Tensor:
        """Draft logits [1,1,K,V] of the levels from `depth` on: the true tokens [1,1,K,1]."""
        levels = range(depth, depth + logits.shape[-2])
        positions = [self.length + level for level in levels]
        few = min(WIDTH, logits.shape[-1])
        best = self.sampler.rank(logits, [self.params], [positions], few)[0, 0]  # [K, few]
        true = self.following[depth - 1 : depth - 1 + len(levels)]
        for level, token, candidates in zip(levels, true, best.tolist(), strict=False):  # sync
            if len(self.path) == level - 1 and token in candidates:
                self.path = (*self.path, candidates.index(token))
        true += [0] * (len(levels) - len(true))  # behind the answer's end nothing is looked at
        return torch.tensor(true, device=logits.device)[None, None, :, None]


def chain(depth: int) -> Tree:
    """The best candidates alone."""
    return Tree.from_paths((0,) * level for level in range(1, depth + 1))
