"""What a drafter names at every place of the model's own answers: the records of `tree/replay.py`
and `tree/chains.py`.

The model has answered before. The drafter is taken to each place of an answer. In all passes of a
draft the tokens that really follow stand in for the ones it would have named: its candidates along
the true path are those of any tree that goes there. Then it drafts once more, what it likes best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drafter.drafting import FalconDrafter
from drafter.medusa import MedusaDrafter
from drafter.model import MAX_FED_BACK
from drafter.naming import Naming
from engine.draft_model import DraftModel
from engine.engine import Engine
from engine.messages import SamplingParams, Submit
from engine.sampling import RIVALS
from engine.sequence import Sequence as RunningSequence
from engine.speculative import SpeculativeDecoder
from tree.chains import Place
from tree.replay import Record
from tree.search import Limits
from tree.topology import RankPath, Tree

from .loading import engine_with
from .methods import EngineMethod, Task
from .tree_choice import WIDTH, Chooser

MAX_DEPTH = 20  # levels that are looked at, whatever the block size, unless one pass names more
SHARPNESS = [step / 10 for step in range(3, 41)]


@dataclass(slots=True)
class Chain:
    """What the drafter names by itself at a place: by level the best `candidates` and the log
    `chances` [RIVALS] that it gave them.
    """

    candidates: list[list[int]] = field(default_factory=list)
    chances: list[Tensor] = field(default_factory=list)

    def place(self, following: Sequence[int], sharpness: float, width: int) -> Place:
        """Held against the tokens that really follow."""
        sharp = (torch.stack(self.chances) * sharpness).log_softmax(-1)[:, :width].tolist()
        pairs = list(zip(self.candidates, following, strict=False))
        right = next((n for n, (own, true) in enumerate(pairs) if own[0] != true), len(pairs))
        own, true = pairs[right] if right < len(pairs) else ([], 0)
        return Place(sharp, right, own.index(true) if true in own[:width] else None)


@dataclass(slots=True)
class Recorded:
    """`answers` hold the record of each, `chains` what the drafter names by itself along it.
    `ranks` [n] are those of all tokens that were among the candidates, and `chances` [n,RIVALS] the
    log chances that the drafter gave these.
    """

    answers: list[Record] = field(default_factory=list)
    chains: list[list[Chain]] = field(default_factory=list)
    chances: list[Tensor] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)

    def sharpness(self) -> float:
        """What to multiply the drafter's logits by, so that its chances come true."""
        if not self.ranks:
            return 1.0
        chances, ranks = torch.stack(self.chances), torch.tensor(self.ranks)[:, None]
        return max(SHARPNESS, key=lambda s: _likelihood(chances * s, ranks))


def _likelihood(logits: Tensor, ranks: Tensor) -> float:
    return float(logits.log_softmax(-1).gather(-1, ranks).sum())


def recorded(engine: Engine, tree: Tree, prompts: Sequence[list[int]], task: Task) -> Chooser:
    """What the drafter names along the answers to all prompts, which are decoded with `tree`."""
    limits = limits_of(engine)
    method = EngineMethod("answers", engine_with(engine, tree), task)
    answers = [method.generate(prompt).token_ids for prompt in prompts]
    recording = record_answers(engine, limits.depth, prompts, answers, task.sampling)
    records = recording.answers
    if isinstance(engine.decoder.drafter, DraftModel):
        records = [[on_chain(ranks) for ranks in record] for record in records]
    sharpness = recording.sharpness()
    places = [
        [chain.place(answer[at:], sharpness, WIDTH) for at, chain in enumerate(chains)]
        for chains, answer in zip(recording.chains, answers, strict=True)
    ]
    max_rows = engine.decoder.max_rows
    return Chooser(records, limits, max_rows, places, sharpness, levels_at_once(engine))


def levels_at_once(engine: Engine) -> int:
    """How many the drafter names together; a dynamic draft can stop between them."""
    drafter = engine.decoder.drafter
    assert drafter is not None
    is_coupled = isinstance(drafter, FalconDrafter) and drafter.telling is not None
    return 1 if is_coupled else drafter.block_size


def on_chain(ranks: RankPath) -> RankPath:
    """As far as a node of the top-1 chain or a child of one: what a draft model's tree may hold."""
    return next((ranks[: n + 1] for n, rank in enumerate(ranks) if rank), ranks)


def limits_of(engine: Engine) -> Limits:
    """What trees the pair can draft and verify on this device."""
    decoder = engine.decoder
    assert decoder.drafter is not None
    size = decoder.drafter.block_size
    passes = 1 if isinstance(decoder.drafter, MedusaDrafter) else max(1, MAX_DEPTH // size)
    return Limits(decoder.max_rows, min(passes * size, MAX_FED_BACK - 1), size)


def record_answers(
    engine: Engine,
    depth: int,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    params: SamplingParams,
) -> Recorded:
    """Take the engine's drafter along every answer, and look down to `depth` from each place."""
    decoder = engine_with(engine, chain(depth)).decoder
    recording = Recorded()
    for prompt, answer in zip(prompts, answers, strict=True):
        record_answer(decoder, list(prompt), list(answer), params, recording)
    return recording


@torch.inference_mode()
def record_answer(
    decoder: SpeculativeDecoder,
    prompt: list[int],
    answer: list[int],
    params: SamplingParams,
    recording: Recorded,
) -> None:
    """Record one answer. `decoder` has one slot and drafts a chain."""
    assert decoder.drafter is not None
    ids = [*prompt, *answer]
    sequence = RunningSequence(Submit("record", ids, 1, params, []), slot=0)
    decoder.target.prefill(0, 0, ids[:-1])
    decoder.drafter.reset(0)
    record: list[RankPath] = []
    chains: list[Chain] = []
    for length in range(len(prompt) - 1, len(ids) - 1):
        sequence.length = length
        decoder.drafts.catch_up(sequence)
        look = _Look(decoder, ids[length + 1 :], length, params, recording)
        roots = torch.tensor(ids[length : length + 1], device=decoder.target.device)
        decoder.drafter.draft([0], roots, decoder.plan, look.rank)
        record.append(look.path)
        decoder.drafter.draft([0], roots, decoder.plan, look.listen)
        chains.append(look.chain)
    recording.answers.append(record)
    recording.chains.append(chains)


class _Look:
    """A draft whose tokens are those that really follow, of which `path` are the ranks, and one of
    the drafter's own, the `chain`.
    """

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        following: list[int],
        length: int,
        params: SamplingParams,
        recording: Recorded,
    ) -> None:
        self.sampler = decoder.sampler
        self.following = following
        self.length = length
        self.params = params
        self.recording = recording
        self.path: RankPath = ()
        self.chain = Chain()

    def rank(self, logits: Tensor, naming: Naming) -> Tensor:
        """The true tokens [1,1,L,1] in place of those that draft logits [1,1,L,V] name."""
        depth, levels = naming.depth, _levels(logits, naming)
        best, chances = self._candidates(logits, naming)
        true = self.following[depth - 1 : depth - 1 + len(levels)]
        rows = zip(levels, true, best.tolist(), chances.cpu(), strict=False)  # sync
        for level, token, candidates, own in rows:
            if len(self.path) == level - 1 and token in candidates:
                self.path = (*self.path, candidates.index(token))
                self.recording.chances.append(own)
                self.recording.ranks.append(self.path[-1])
        true += [0] * (len(levels) - len(true))  # behind the answer's end nothing is looked at
        return torch.tensor(true, device=logits.device)[None, None, :, None]

    def listen(self, logits: Tensor, naming: Naming) -> Tensor:
        """The best tokens [1,1,L,1] by draft logits [1,1,L,V]."""
        best, chances = self._candidates(logits, naming)
        self.chain.candidates += best.tolist()
        self.chain.chances += chances.cpu().unbind()
        return best[None, None, :, :1]

    def _candidates(self, logits: Tensor, naming: Naming) -> tuple[Tensor, Tensor]:
        """The best tokens [L,few] and their log chances."""
        positions = [self.length + level for level in _levels(logits, naming)]
        few = min(RIVALS, logits.shape[-1])
        best, chances = self.sampler.rank_with_chances(logits, [self.params], [positions], few, 1.0)
        return best[0, 0], chances[0, 0]


def _levels(logits: Tensor, naming: Naming) -> range:
    return range(naming.depth, naming.depth + logits.shape[-2])


def chain(depth: int) -> Tree:
    """The best candidates alone."""
    return Tree.from_paths((0,) * level for level in range(1, depth + 1))
