"""Plans that draft more than they verify: the likeliest nodes are kept, and no answer changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter, save_random_target
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from drafter.plan import build_plan
from drafter.protocol import name_nodes
from engine.config import Dtype, EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import SamplingParams, Submit
from engine.rows import TreeRows
from engine.selection import Selector
from engine.speculative import SpeculativeDecoder

CPU = torch.device("cpu")
V = 11


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), block_size=st.integers(1, 4), count=st.integers(2, 11))
def test_the_likeliest_nodes_are_kept(seed: int, block_size: int, count: int) -> None:
    """Against a definition node by node: the product of the probabilities of a path's tokens."""
    torch.manual_seed(seed)
    plan = build_plan(SMALL_TREE, block_size, CPU, num_verified=count)
    selector = Selector(plan, batch=2)
    tokens = torch.zeros(2, SMALL_TREE.num_nodes, dtype=torch.long)
    chances = torch.ones(2, SMALL_TREE.num_nodes)
    for number, tables in enumerate(plan.passes):
        blocks = (tables.rows.stop - tables.rows.start) // block_size
        logits = 3 * torch.randn(2, blocks, block_size, V)
        name_nodes(tokens, logits, plan, number, lambda own, _, w: own.topk(w).indices, selector)
        for family in tables.families:
            for child in family.children:
                row = logits.flatten(1, 2)[:, family.row].softmax(-1)
                own = row.gather(-1, tokens[:, child, None])[:, 0]
                chances[:, child] = chances[:, family.parent] * own
    kept = selector.best()
    for b in range(2):
        nodes = kept[b].tolist()
        assert nodes == sorted(set(nodes))
        assert len(nodes) == count
        assert all(SMALL_TREE.parents[node] in nodes for node in nodes[1:])
        left_out = [n for n in range(SMALL_TREE.num_nodes) if n not in nodes]
        worst = chances[b, nodes].min()
        assert all(chances[b, node] <= worst * 1.01 for node in left_out)


def test_rows_of_a_part_are_those_of_the_whole() -> None:
    whole = TreeRows.of(SMALL_TREE, SMALL_TREE.num_nodes, CPU)
    nodes = [0, 1, 2, 5, 9]
    nodes = sorted({0, *nodes, *(a for node in nodes for a in SMALL_TREE.path_to(node))})
    part = whole.part(nodes, count=16)
    assert part.visible.shape == (16, 16)
    assert part.offsets[: len(nodes)].tolist() == [SMALL_TREE.depths[node] for node in nodes]
    for row, node in enumerate(nodes):
        seen = {0, *SMALL_TREE.path_to(node)}
        assert part.visible[row].nonzero().flatten().tolist() == [
            column for column, other in enumerate(nodes) if other in seen
        ]
        below = {nodes[child] for child in part.children[row]}
        assert below == set(SMALL_TREE.children(node)) & set(nodes)
        assert part.tree.paths[row] == SMALL_TREE.paths[node]
    assert part.visible[len(nodes) :].nonzero()[:, 1].eq(0).all()  # padding sees the root alone


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("pair")
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=31, max_position_embeddings=256,
    )  # fmt: skip
    target: Path = save_random_target(config, folder / "target")
    drafter = save_random_drafter(target, folder / "drafter")

    def load(dtype: Dtype, num_verified: int) -> Engine:
        config = EngineConfig(
            model=str(target), drafter=str(drafter), dtype=dtype, device="cpu",
            max_num_seqs=3, speculation="always",
        )  # fmt: skip
        engine = load_engine(config)
        plan = build_plan(SMALL_TREE, 2, CPU, num_verified)
        decoder = engine.decoder
        engine.decoder = SpeculativeDecoder(engine.target, decoder.drafter, plan, decoder.sampler)
        return engine

    return load


@pytest.mark.parametrize("num_verified", [2, 6, 11])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_answer_changes(engine_of, dtype: Dtype, num_verified: int) -> None:  # type: ignore[no-untyped-def]
    engine = engine_of(dtype, num_verified)
    answers = []
    for speculative in (True, False):
        for number in range(5):
            sampling = SamplingParams(temperature=0.7 * (number % 2), seed=number)
            prompt = [3, 4, 5, number]
            engine.submit(Submit(str(number), prompt, 24, sampling, [], speculative=speculative))
        ids: dict[str, list[int]] = {}
        while engine.has_work:
            for output in engine.step().outputs:
                ids.setdefault(output.request_id, []).extend(output.token_ids)
                assert output.drafted == (num_verified - 1 if speculative else 0)
        answers.append(ids)
    assert answers[0] == answers[1]
