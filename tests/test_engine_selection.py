"""Plans that draft more than they verify: the likeliest nodes are kept, and no answer changes."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter, save_random_target
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig

from drafter.config import Dynamic
from drafter.naming import Naming
from drafter.plan import build_plan
from drafter.protocol import name_nodes
from engine.config import Dtype, EngineConfig
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import SamplingParams, Submit
from engine.rows import TreeRows
from engine.selection import Selector
from engine.speculative import SpeculativeDecoder
from tree.topology import Tree

CPU = torch.device("cpu")
V = 11


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    block_size=st.integers(1, 4),
    count=st.integers(2, 11),
    least_trust=st.sampled_from([0.0, 0.3, 1.0]),
    is_coupled=st.booleans(),
)
def test_the_likeliest_nodes_are_kept(
    seed: int, block_size: int, count: int, least_trust: float, is_coupled: bool
) -> None:
    """Against a definition node by node: the product of the chances of a path's tokens."""
    torch.manual_seed(seed)
    dynamic = Dynamic(num_verified=count, least_trust=least_trust)
    plan = build_plan(SMALL_TREE, block_size, CPU, dynamic)
    selector = Selector(dynamic, batch=2)
    tokens = torch.zeros(2, SMALL_TREE.num_nodes, dtype=torch.long)
    chances = torch.ones(2, SMALL_TREE.num_nodes)
    named = {0}

    def rank(logits: Tensor, naming: Naming) -> Tensor:
        best = logits.log_softmax(-1).topk(naming.width)
        selector.hear(best.values)
        selector.note(naming, num_rows=logits.shape[1] * logits.shape[2])
        return best.indices

    namings = [
        naming
        for tables in plan.passes
        for naming in ([s.naming for s in tables.by_slot] if is_coupled else [tables.whole])
    ]
    for naming in namings:
        levels = 1 if is_coupled else block_size
        rows = 1 + max(family.row for family in naming.families) // levels
        logits = 3 * torch.randn(2, rows, levels, V)
        assert name_nodes(tokens, logits, naming, rank, None)
        for family in naming.families:
            for child in family.children:
                row = logits.flatten(1, 2)[:, family.row].softmax(-1)
                own = row.gather(-1, tokens[:, child, None])[:, 0]
                chances[:, child] = chances[:, family.parent] * own
                named.add(child)
        ends = [
            n for n in named if SMALL_TREE.children(n) and SMALL_TREE.children(n)[0] not in named
        ]
        trust = chances[:, ends].sum(-1).mean()
        assert selector.goes_on() == (trust >= least_trust)
        if trust < least_trust:
            break
    deepest = max(SMALL_TREE.depths[node] for node in named)
    assert ceil(selector.passes) == ceil(deepest / block_size)
    assert (selector.passes == len(plan.passes)) == (len(named) == SMALL_TREE.num_nodes)
    kept = selector.best([count, 2])
    for b, own_count in enumerate((count, 2)):
        nodes = kept[b]
        assert len(nodes) == min(own_count, len(named))
        assert nodes == sorted(set(nodes))
        assert set(nodes) <= named
        assert all(SMALL_TREE.parents[node] in nodes for node in nodes[1:])
        left_out = [n for n in named if n not in nodes]
        worst = chances[b, nodes].min()
        assert all(chances[b, node] <= worst * 1.0001 for node in left_out)


@pytest.mark.parametrize("worst", [-torch.inf, torch.nan])
def test_what_may_not_be_picked_is_still_a_tree(worst: float) -> None:
    """top_k of 1, or a grammar with one way on: all chances but one of each row are none."""
    dynamic = Dynamic(num_verified=7)
    plan = build_plan(SMALL_TREE, 2, CPU, dynamic)
    selector = Selector(dynamic, batch=1)
    for tables in plan.passes:
        blocks = (tables.rows.stop - tables.rows.start) // 2
        chances = torch.full((1, blocks, 2, tables.whole.width), worst)
        chances[..., 0] = 0.0
        selector.hear(chances)
        selector.note(tables.whole, num_rows=2 * blocks)
        assert selector.goes_on()
    nodes = selector.best([7])[0]
    assert len(set(nodes)) == 7
    assert all(SMALL_TREE.parents[node] in nodes for node in nodes[1:])
    chain = [node for node, path in enumerate(SMALL_TREE.paths) if not any(path)]
    assert set(chain) <= set(nodes)


def test_chances_of_several_levels_may_be_heard_at_once() -> None:
    """Those of a run of slots: each level takes its own rows, and what comes new replaces them."""
    chain = Tree.from_paths([(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0), (1,), (0, 0, 1)])
    plan = build_plan(chain, 4, CPU, Dynamic(num_verified=4))
    selector, apart = (Selector(Dynamic(num_verified=4), batch=1) for _ in range(2))
    chances = torch.tensor([[-0.1, -2.0], [-0.2, -9.0], [-0.3, -0.4], [-5.0, -9.0]])[None, None]
    wrong = chances.clone()
    wrong[:, :, 2:] = -3.0  # of slots that were told what did not come true
    levels = [slot.naming for slot in plan.passes[0].by_slot]
    selector.hear(wrong)
    for naming in levels[:2]:
        selector.note(naming, num_rows=1)
    selector.hear(chances[:, :, 2:])
    for naming in levels[2:]:
        selector.note(naming, num_rows=1)
    for level, naming in enumerate(levels):
        apart.hear(chances[:, :, level, None])
        apart.note(naming, num_rows=1)
    assert selector.best([6]) == apart.best([6])
    assert selector.best([4]) == [[0, 1, 2, 3]]
    assert (selector.passes, selector.goes_on()) == (apart.passes, apart.goes_on())


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

    def load(dtype: Dtype, num_verified: int, least_trust: float, coupled: bool) -> Engine:
        drafter = save_random_drafter(target, folder / str(coupled), coupled=coupled)
        config = EngineConfig(
            model=str(target), drafter=str(drafter), dtype=dtype, device="cpu",
            max_num_seqs=3, speculation="always",
        )  # fmt: skip
        engine = load_engine(config)
        dynamic = Dynamic(num_verified=num_verified, least_trust=least_trust, sharpness=1.5)
        plan = build_plan(SMALL_TREE, 2, CPU, dynamic)
        decoder = engine.decoder
        engine.runner.decoder = SpeculativeDecoder(
            engine.target, decoder.drafter, plan, decoder.sampler
        )
        return engine

    return load


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("least_trust", [0.0, 0.2])
@pytest.mark.parametrize("num_verified", [2, 6, 11])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_answer_changes(  # type: ignore[no-untyped-def]
    engine_of, dtype: Dtype, num_verified: int, least_trust: float, coupled: bool
) -> None:
    engine = engine_of(dtype, num_verified, least_trust, coupled)
    answers = []
    drafted: set[int] = set()
    for speculative in (True, False):
        for number in range(5):
            sampling = SamplingParams(
                temperature=0.7 * (number % 2), seed=number, top_k=1 if number == 3 else 0
            )
            prompt = [3, 4, 5, number]
            engine.submit(Submit(str(number), prompt, 24, sampling, [], speculative=speculative))
        ids: dict[str, list[int]] = {}
        while engine.has_work:
            for output in engine.step().outputs:
                ids.setdefault(output.request_id, []).extend(output.token_ids)
                assert output.drafted <= (num_verified - 1 if speculative else 0)
                drafted.add(output.drafted)
        answers.append(ids)
    assert answers[0] == answers[1]
    assert max(drafted) == num_verified - 1 or least_trust
    assert len(drafted) > 2 or num_verified <= 6 or not least_trust
