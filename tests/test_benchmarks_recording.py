"""A replayed record tells the very steps that decoding takes, for any tree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from fakes import save_random_drafter, save_random_target
from transformers import AutoConfig, LlamaConfig

from benchmarks.loading import engine_with
from benchmarks.methods import EngineMethod, Task
from benchmarks.recording import (
    MAX_DEPTH,
    Recorded,
    chain,
    limits_of,
    on_chain,
    record_answers,
    recorded,
)
from benchmarks.step_times import StepModel
from benchmarks.tree_choice import Chooser
from drafter.checkpoint import save_drafter, target_fingerprint
from drafter.config import MedusaConfig
from drafter.medusa import MedusaHead
from engine.config import Dtype, EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import SamplingParams
from engine.planner import Costs
from engine.speculative import MAX_CPU_ROWS
from tree.search import Limits
from tree.topology import ROOT_ONLY, Tree

DRAFTERS = [(1, False), (2, False), (3, False), (2, True), (4, True)]  # block size, coupled
PROMPTS = [[5, 9, 1], [7, 7, 2, 20], [11]]
WIDE = Tree.from_paths(
    [*([rank] for rank in range(8)), *([0, rank] for rank in range(5)), *([1, 0], [1, 1], [2, 0])]
)
DEEP = Tree.from_paths(
    [*([0] * depth for depth in range(1, 6)), [1], [2], [3], [0, 1], [1, 0], [1, 0, 0], [0, 0, 1]]
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So few tokens that an untrained drafter is right now and then."""
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return save_random_target(config, tmp_path_factory.mktemp("target"))


def load(target: Path, folder: Path, dtype: Dtype, **sizes: int | str | bool | None) -> Engine:
    drafter = save_random_drafter(target, folder, **sizes)
    config = EngineConfig(
        model=str(target),
        drafter=str(drafter),
        dtype=dtype,
        max_num_seqs=1,
        threads=1,
        speculation="always",
    )
    return load_engine(config)


@dataclass(frozen=True)
class Case:
    """A pair with an untrained drafter, and how it decodes."""

    dtype: Dtype
    block_size: int
    coupled: bool
    engine: Engine
    task: Task


@pytest.fixture(params=product(("float32", "bfloat16"), DRAFTERS, (0.0, 1.0)), ids=str)
def case(request: pytest.FixtureRequest, target: Path, tmp_path: Path) -> Case:
    dtype, (block_size, coupled), temperature = request.param
    if dtype == "float32":
        request.getfixturevalue("unrounded")
    engine = load(target, tmp_path, dtype, block_size=block_size, coupled=coupled)
    task = Task(40, SamplingParams(temperature=temperature, seed=3), ())
    return Case(dtype, block_size, coupled, engine, task)


def test_replayed_steps_are_those_of_decoding(case: Case) -> None:
    engine, task = case.engine, case.task
    plainly = EngineMethod("plain", engine_with(engine, ROOT_ONLY), task)
    answers = [plainly.generate(prompt).token_ids for prompt in PROMPTS]
    recording = record_answers(engine, 6, PROMPTS, answers, task.sampling)
    records = recording.answers
    assert len(recording.ranks) == len(recording.chances) == sum(len(r) for o in records for r in o)
    assert [len(record) for record in records] == [40, 40, 40]
    assert max(len(ranks) for record in records for ranks in record) > 1
    limits = Limits(MAX_CPU_ROWS, 6, case.block_size)
    chooser = Chooser(records, limits, MAX_CPU_ROWS)
    # Where levels are named in turn, one has one row along a path, more in a tree: rounded apart.
    in_turn = case.coupled or case.block_size == 1
    slack = 2 if in_turn and case.dtype == "bfloat16" else 0
    for tree in (WIDE, DEEP, chain(6), ROOT_ONLY):
        method = EngineMethod("own", engine_with(engine, tree), task)
        steps = sum(method.generate(prompt).steps for prompt in PROMPTS)
        assert abs(chooser.replay(tree).steps - steps) <= slack


def test_replayed_dynamic_drafts_are_those_of_decoding(case: Case) -> None:
    engine, task = case.engine, case.task
    chooser = recorded(engine, chain(1), PROMPTS, task)
    model = StepModel(Costs({16: 1.0}, {1: 1.0}, {1: 1.0}, {1: 1.0}), 1, case.block_size)
    passes = []
    for rows, trust in ((4, 0.0), (12, 0.0), (12, 0.05), (8, 0.2)):
        found = chooser.chain_candidate(rows, trust, model)
        method = EngineMethod("own", engine_with(engine, found.tree, 1, found.dynamic), task)
        steps = sum(method.generate(prompt).steps for prompt in PROMPTS)
        assert found.replay.steps == steps
        assert max(found.replay.rows) <= rows
        passes.append(found.replay.passes)
    assert passes[1] > max(passes[2:])


@pytest.mark.usefixtures("unrounded")
def test_one_pass_and_chains_are_all_that_some_drafters_have(target: Path, tmp_path: Path) -> None:
    """Medusa heads name all levels at once; a draft model's branches end at once."""
    config = AutoConfig.from_pretrained(target)
    medusa = MedusaConfig(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        block_size=3,
        fingerprint=target_fingerprint(target),
    )
    save_drafter(MedusaHead(medusa), tmp_path)
    task = Task(24, SamplingParams(temperature=0.0), ())
    for drafter, depth in ((tmp_path, 3), (target, MAX_DEPTH)):
        engine = load_engine(
            EngineConfig(
                model=str(target),
                drafter=str(drafter),
                dtype="float32",
                max_num_seqs=1,
                threads=1,
                speculation="always",
            ),
            chain(1),
        )
        chooser = recorded(engine, chain(1), PROMPTS, task)
        assert chooser.limits.depth == depth
        for tree in chooser.likely_trees(chooser.all_roots())[-2:]:
            method = EngineMethod("own", engine_with(engine, tree), task)
            steps = sum(method.generate(prompt).steps for prompt in PROMPTS)
            assert chooser.replay(tree).steps == steps
            assert tree.max_depth <= depth
        model = StepModel(
            Costs({16: 1.0}, {1: 1.0}, {1: 1.0}, {1: 1.0}), 1, limits_of(engine).block_size
        )
        for rows, trust in ((3, 0.0), (8, 0.1), (20, 0.0)):
            found = chooser.chain_candidate(rows, trust, model)
            method = EngineMethod("own", engine_with(engine, found.tree, 1, found.dynamic), task)
            assert found.replay.steps == sum(method.generate(prompt).steps for prompt in PROMPTS)
    assert on_chain((0, 0, 2, 0, 1)) == (0, 0, 2)
    assert on_chain((0, 0)) == (0, 0)


def test_sharpness_makes_chances_come_true() -> None:
    """Ranks drawn by logits three times as sharp as those that were recorded."""
    torch.manual_seed(0)
    logits = torch.randn(4000, 16)
    ranks = torch.distributions.Categorical(logits=3.0 * logits).sample()
    recording = Recorded(chances=list(logits.log_softmax(-1)), ranks=ranks.tolist())
    assert recording.sharpness() == pytest.approx(3.0, abs=0.21)
    assert Recorded().sharpness() == 1.0
