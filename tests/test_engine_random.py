"""Whatever comes in whatever order, every request gets what it gets alone without speculation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from fakes import save_random_drafter
from text_target import save_text_target

from engine.config import Dtype, EngineConfig, NGrams
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import Grammar, RequestOutput, SamplingParams, Submit
from tree.topology import RankPath, Tree

STEPS = 60
CONTEXT = 256


def random_tree(dice: random.Random) -> Tree:
    paths: list[RankPath] = [()]
    children: dict[RankPath, int] = {(): 0}
    for _ in range(dice.randint(1, 18)):
        parent = dice.choice([path for path in paths if len(path) < 6])
        paths.append((*parent, children[parent]))
        children[parent] += 1
        children[paths[-1]] = 0
    return Tree.from_paths(paths[1:])


class Chaos:
    """An engine under random requests, aborts, plans, predictions, prompt lookup, and drafts that
    are right now and then.
    """

    def __init__(
        self,
        target: Path,
        folder: Path,
        dtype: Dtype,
        dice: random.Random,
        grammars: Sequence[Grammar | None] = (None,),
    ) -> None:
        self.target, self.dtype, self.dice, self.grammars = target, dtype, dice, grammars
        block_size = dice.randint(1, 4)
        drafter = save_random_drafter(
            target,
            folder,
            random_tree(dice),
            block_size=block_size,
            window=dice.choice([None, 6]),
            mixer=dice.choice(["lstm", "linear"]),
            coupled=block_size > 1 and dice.choice([False, True]),
        )
        self.engine = self.load(drafter, dice.randint(1, 5))
        self.engine.policy.ngrams = dice.choice([None, NGrams()])
        planner = self.engine.policy.planner
        assert planner is not None
        planner.choose = lambda batch: dice.choice(planner.plans)  # type: ignore[method-assign]
        self.requests: dict[str, Submit] = {}
        self.expected: dict[str, list[int]] = {}
        self.given: dict[str, list[int]] = {}
        self.scores: dict[str, list[float]] = {}
        self.scored: dict[str, list[float]] = {}
        self.unfinished: set[str] = set()
        self._guess_right()

    def load(self, drafter: Path | None, num_slots: int) -> Engine:
        return load_engine(
            EngineConfig(
                model=str(self.target),
                drafter=drafter and str(drafter),
                dtype=self.dtype,
                max_num_seqs=num_slots,
                deterministic=self.dtype == "bfloat16",
                speculation="auto" if drafter else "off",
            )
        )

    def _guess_right(self) -> None:
        """Put the true continuation on some path of most drafts."""
        drafter = self.engine.decoder.drafter
        assert drafter is not None
        original = drafter.draft

        def draft(slots, roots, plan, rank, mend=None, guess=None):  # type: ignore[no-untyped-def]
            tokens = original(slots, roots, plan, rank)
            for b, slot in enumerate(slots):
                sequence = next(s for s in self.engine.scheduler.running if s.slot == slot)
                done = sequence.num_output + len(sequence.provisional)
                ahead = self.expected[sequence.request.request_id][done:]
                path = plan.tree.path_to(self.dice.randrange(1, plan.tree.num_nodes))
                if self.dice.random() < 0.8:
                    for node, token in zip(path, ahead, strict=False):
                        tokens[b, node] = token
            return tokens

        drafter.draft = draft  # type: ignore[method-assign]

    def submit(self) -> None:
        dice, name = self.dice, str(len(self.requests))
        prompt = [dice.choice([2, 3])] * dice.randint(1, 30)
        if self.requests and dice.random() < 0.5:  # a second turn
            before = dice.choice(list(self.requests))
            prompt = self.requests[before].prompt_ids + self.given[before]
        max_tokens = dice.choice([0, 1, 3, 20, 40])
        request = Submit(
            name,
            [*prompt, dice.randrange(64)][: CONTEXT - max_tokens],
            max_tokens,
            SamplingParams(
                temperature=dice.choice([0.0, 0.8, 1.0]),
                seed=dice.randrange(5),
                top_p=dice.choice([1.0, 0.9]),
                frequency_penalty=dice.choice([0.0, 1.0]),
                min_tokens=dice.choice([0, min(1, max_tokens)]),
            ),
            [dice.randrange(64), dice.randrange(64)],
            speculative=dice.random() < 0.9,
            prompt_logprobs=dice.choice([None, 0]),
            trace=dice.random() < 0.5,
            grammar=dice.choice(self.grammars),
        )
        plain = self.load(None, 1)
        plain.submit(request)
        outputs = [o for _ in iter(lambda: plain.has_work, False) for o in plain.step().outputs]
        self.expected[name] = [token for output in outputs for token in output.token_ids]
        self.scores[name] = [s.logprob for output in outputs for s in output.prompt_logprobs]
        self.requests[name], self.given[name], self.scored[name] = request, [], []
        self.unfinished.add(name)
        if dice.random() < 0.5:
            request = msgspec.structs.replace(request, prediction_ids=self._prediction(name))
        self.engine.submit(request)

    def _prediction(self, name: str) -> list[int]:
        """The answer with tokens left out, put in or replaced here and there."""
        dice, predicted = self.dice, list[int]()
        share = dice.choice([0.0, 0.1, 0.4])
        for token in self.expected[name]:
            others = [], [dice.randrange(64)], [dice.randrange(64), token]
            predicted += dice.choice(others) if dice.random() < share else [token]
        return predicted

    def step(self) -> None:
        for output in self.engine.step().outputs:
            name = output.request_id
            self.given[name] += output.token_ids
            self.scored[name] += [score.logprob for score in output.prompt_logprobs]
            whole = self.expected[name]
            assert self.given[name] == whole[: len(self.given[name])]
            assert (output.trace is not None) == self.requests[name].trace or not output.token_ids
            check_trace(output)
            if output.finish_reason is not None:
                assert output.finish_reason != "error"
                assert self.given[name] == whole
                error = 1e-4 if self.dtype == "float32" else 0.0
                assert self.scored[name] == pytest.approx(self.scores[name], abs=error, rel=0)
                self.unfinished.remove(name)
        drafter = self.engine.decoder.drafter
        assert drafter is not None
        for sequence in self.engine.scheduler.sequences.values():
            read = drafter.lengths[sequence.slot]
            assert read <= sequence.length + len(sequence.provisional)

    def abort(self) -> None:
        if self.unfinished:
            name = self.dice.choice(sorted(self.unfinished))
            self.unfinished.remove(name)
            self.engine.abort(name)


def check_trace(output: RequestOutput) -> None:
    """The path leads down the tree and holds the tokens; sources are as counted."""
    if (trace := output.trace) is None:
        return
    assert len(output.sources) == len(output.token_ids)
    assert len(trace.tokens) == len(trace.parents) == trace.root + output.drafted + 1
    assert [trace.parents[node] for node in trace.path] == [0, *trace.path][:-1]
    picked = [trace.tokens[node] for node in trace.path]
    if output.finish_reason is None:
        final = len(output.token_ids)
        assert len(trace.path) + 1 - final >= trace.provisional
    assert [*picked, output.token_ids[-1]][: len(output.token_ids)] == output.token_ids
    assert output.accepted == sum(source != "bonus" for source in output.sources)
    assert trace.passes == 0 or not output.predicted


GRAMMARS = [
    None,
    Grammar("json_object"),
    Grammar("regex", "[a-c]{1,9}(x+y|z{2,5})*"),
    Grammar("choice", '["the falcon flies", "the hills", "é"]'),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(4))
def test_every_request_gets_what_it_gets_alone(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Dtype, seed: int
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr("engine.engine.PREFILL_BUDGET", dice.choice([3, 16, 64]))
    torch.manual_seed(seed)
    run(Chaos(tiny_llama, tmp_path, dtype, dice))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_request_with_a_grammar_gets_what_it_gets_alone(tmp_path: Path, dtype: Dtype) -> None:
    target = save_text_target(tmp_path / "target")
    run(Chaos(target, tmp_path / "drafter", dtype, random.Random(7), GRAMMARS))


def run(chaos: Chaos) -> None:
    for _ in range(STEPS):
        if chaos.dice.random() < 0.35 and len(chaos.unfinished) < 8:
            chaos.submit()
        if chaos.dice.random() < 0.05:
            chaos.abort()
        chaos.step()
    while chaos.engine.has_work:
        chaos.step()
    assert not chaos.unfinished
    assert len(chaos.requests) > 10
