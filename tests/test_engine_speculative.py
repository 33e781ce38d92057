"""Output never changes: speculation against plain decoding and against Hugging Face, id for id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from drafter.checkpoint import target_fingerprint
from drafter.config import DrafterError
from drafter.plan import build_plan
from engine.config import EngineConfig
from engine.drafts import Drafts
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import SamplingParams, Submit
from engine.rows import TreeRows
from engine.sampling import Sampler
from engine.sequence import Sequence
from engine.speculative import SpeculativeDecoder
from engine.target import Verdict
from tree.topology import Tree

GREEDY = SamplingParams(temperature=0.0)
PROMPTS = [[(7 * i + 3 * j) % 60 + 2 for j in range(5 + 9 * i)] for i in range(5)]
DEEP_TREE = Tree.from_paths([[0] * depth for depth in range(1, 8)] + [[1], [2], [3], [0, 1]])

Load = Callable[..., Engine]


@pytest.fixture
def load(tiny_llama: Path, tmp_path: Path) -> Load:
    """An engine on the tiny llama; `sizes` go to a drafter made for it."""

    def _load(
        drafter: bool = True,
        tree: Tree = SMALL_TREE,
        dtype: Literal["float32", "bfloat16"] = "float32",
        **sizes: int | str | None,
    ) -> Engine:
        folder = save_random_drafter(tiny_llama, tmp_path, tree, **sizes) if drafter else None
        return load_engine(
            EngineConfig(
                model=str(tiny_llama),
                drafter=folder and str(folder),
                dtype=dtype,
                max_num_seqs=3,
                speculation="always" if drafter else "off",
            )
        )

    return _load


def submit(engine: Engine, name: str, prompt: list[int], **changes: object) -> None:
    settings = {"max_tokens": 40, "sampling": GREEDY, "stop_token_ids": [], **changes}
    engine.submit(Submit(request_id=name, prompt_ids=prompt, **settings))  # type: ignore[arg-type]


def drain(engine: Engine) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    while engine.has_work:
        for output in engine.step().outputs:
            ids.setdefault(output.request_id, []).extend(output.token_ids)
    return ids


def free_slots(engine: Engine) -> list[int]:
    return [slot.index for slot in engine.scheduler.slots if slot.sequence is None]


def alone(engine: Engine, prompt: list[int], **changes: object) -> list[int]:
    submit(engine, "alone", prompt, **changes)
    return drain(engine)["alone"]


def perfect_draft(engine: Engine, answers: dict[int, list[int]]) -> None:
    """Make the drafter propose the given continuation along the top-1 chain, by slot."""
    drafter = engine.decoder.drafter
    assert drafter is not None
    original = drafter.draft

    def draft(slots, roots, plan, rank, mend=None, guess=None):  # type: ignore[no-untyped-def]
        tokens = original(slots, roots, plan, rank)
        for b, slot in enumerate(slots):
            done = next(s.num_output for s in engine.scheduler.running if s.slot == slot)
            ahead = answers[slot][done : done + plan.tree.max_depth]
            tokens[b, 1 : 1 + len(ahead)] = torch.tensor(ahead, dtype=torch.long)
        return tokens

    drafter.draft = draft  # type: ignore[method-assign]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_plain_greedy_equals_hugging_face(load: Load, tiny_llama: Path, prompt: list[int]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
    )
    assert alone(load(drafter=False), prompt) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "sizes",
    [
        {"block_size": 1},
        {"block_size": 2},
        {"block_size": 3, "num_layers": 2},
        {"block_size": 4},
        {"block_size": 2, "mixer": "linear"},
        {"block_size": 1, "mixer": "linear"},
        {"block_size": 2, "window": 8},
        {"block_size": 2, "coupled": True},
        {"block_size": 4, "mixer": "linear", "coupled": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingParams(temperature=0.7, seed=1, top_p=0.9),
        SamplingParams(temperature=1.0, seed=2, top_k=20),
        SamplingParams(temperature=1.0, seed=2**63 + 5, min_p=0.05),
    ],
    ids=["greedy", "top_p", "top_k", "min_p"],
)
def test_speculation_changes_no_token(
    load: Load, sizes: dict[str, int | str], sampling: SamplingParams
) -> None:
    plain, falcon = load(drafter=False), load(**sizes)
    for prompt in (PROMPTS[1], PROMPTS[4]):
        expected = alone(plain, prompt, sampling=sampling)
        assert alone(falcon, prompt, sampling=sampling) == expected


@pytest.mark.parametrize("seed", range(4))
def test_speculation_changes_no_token_in_bfloat16(load: Load, seed: int) -> None:
    """Side branches are accepted there as well, provisionally."""
    plain, falcon = load(drafter=False, dtype="bfloat16"), load(dtype="bfloat16")
    for prompt in PROMPTS:
        sampling = SamplingParams(temperature=1.0, seed=seed)
        expected = alone(plain, prompt, sampling=sampling)
        assert alone(falcon, prompt, sampling=sampling) == expected


def test_speculation_changes_no_token_from_the_shortest_prompt(load: Load) -> None:
    assert alone(load(block_size=4), [5]) == alone(load(drafter=False), [5])


def test_neighbours_change_no_token(load: Load) -> None:
    plain, falcon = load(drafter=False), load()
    warm = SamplingParams(temperature=1.0, seed=11)
    expected = {}
    for number, prompt in enumerate(PROMPTS):
        sampling = warm if number % 2 else GREEDY
        expected[str(number)] = alone(plain, prompt, sampling=sampling)
        submit(falcon, str(number), prompt, sampling=sampling)
    assert drain(falcon) == expected


@pytest.mark.parametrize("tree", [SMALL_TREE, DEEP_TREE])
def test_a_draft_that_is_always_right_is_accepted_whole(load: Load, tree: Tree) -> None:
    answer = alone(load(drafter=False), PROMPTS[0])
    engine = load(tree=tree)
    perfect_draft(engine, dict.fromkeys(range(3), answer))
    submit(engine, "a", PROMPTS[0])
    reports = []
    while engine.has_work:
        reports.append(engine.step())
    assert [id for r in reports for o in r.outputs for id in o.token_ids] == answer
    depth = tree.max_depth
    assert [r.accepted_lengths for r in reports[:-1]] == [[depth]] * (len(reports) - 1)
    assert len(reports) == -(-len(answer) // (depth + 1))


def test_a_drafter_with_the_targets_own_logits_is_accepted_whole_when_sampling(
    load: Load, tiny_llama: Path
) -> None:
    """Holds only where the drafter's noise is that of the position which the target will pick."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    engine = load(tree=DEEP_TREE)
    drafter = engine.decoder.drafter
    assert drafter is not None

    def draft(slots, roots, plan, rank, mend=None, guess=None):  # type: ignore[no-untyped-def]
        ids = list(engine.scheduler.running[0].ids)
        tokens = torch.zeros(1, plan.tree.num_nodes, dtype=torch.long)
        tokens[0, 0] = ids[-1]
        chain = Tree.from_paths((0,) * depth for depth in range(1, plan.tree.max_depth + 1))
        for tables in build_plan(chain, 1, tokens.device).passes:
            logits = model(torch.tensor([ids]), use_cache=False).logits[:, None, -1:]
            ids.append(int(rank(logits, tables.whole)))
            tokens[0, tables.whole.depth] = ids[-1]
        return tokens

    drafter.draft = draft  # type: ignore[method-assign]
    sampling = SamplingParams(temperature=1.0, seed=4, top_p=0.95)
    submit(engine, "a", PROMPTS[1], sampling=sampling)
    reports = []
    while engine.has_work:
        reports.append(engine.step())
    assert [r.accepted_lengths for r in reports[:-1]] == [[7]] * (len(reports) - 1)


@pytest.mark.parametrize("window", [2, 4])
def test_a_run_longer_than_the_drafters_window_is_fed_back(load: Load, window: int) -> None:
    answer = alone(load(drafter=False), PROMPTS[0])
    engine = load(tree=DEEP_TREE, block_size=2, window=window)
    perfect_draft(engine, dict.fromkeys(range(3), answer))
    assert alone(engine, PROMPTS[0]) == answer


def branch_draft(engine: Engine, answer: list[int], branch: list[tuple[int, ...]]) -> None:
    """Make the drafter propose the answer along a side branch, and nothing right elsewhere."""
    drafter = engine.decoder.drafter
    assert drafter is not None
    original = drafter.draft
    side = [SMALL_TREE.paths.index(path) for path in branch]

    def draft(slots, roots, plan, rank, mend=None, guess=None):  # type: ignore[no-untyped-def]
        tokens = original(slots, roots, plan, rank)
        (sequence,) = engine.scheduler.running
        done = sequence.num_output + len(sequence.provisional)
        ahead = torch.tensor([*answer, 0, 0, 0, 0, 0, 0][done : done + len(side)])
        tokens[0, 1:] = (ahead[0] + 1) % 64
        tokens[0, side] = ahead
        return tokens

    drafter.draft = draft  # type: ignore[method-assign]


BRANCH: list[tuple[int, ...]] = [(1,), (1, 0)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_side_branch_is_provisional_and_costs_no_step(
    load: Load, dtype: Literal["float32", "bfloat16"]
) -> None:
    """The answer stands on branch (1, 0) while the top-1 chain is wrong. The first step can finish
    one token only; each later one confirms two and finishes one.

    Of each three, the first two were drafted, and the third is the bonus token.
    """
    answer = alone(load(drafter=False, dtype=dtype), PROMPTS[2])
    engine = load(dtype=dtype)
    branch_draft(engine, answer, BRANCH)
    submit(engine, "a", PROMPTS[2])
    reports = []
    while engine.has_work:
        reports.append(engine.step())
    assert [id for r in reports for o in r.outputs for id in o.token_ids] == answer
    assert [r.accepted_lengths for r in reports[:-1]] == [[1]] + [[2]] * (len(reports) - 2)


@pytest.mark.parametrize("wrong", [1, 2, 5])
def test_a_provisional_token_that_is_wrong_is_taken_back(load: Load, wrong: int) -> None:
    """Rows off the chain name other tokens now and then: the drafter reads them, no user does."""
    answer = alone(load(drafter=False), PROMPTS[2])
    engine = load()
    branch_draft(engine, answer, BRANCH)
    original, drafter, steps = engine.decoder.verify, engine.decoder.drafter, []
    assert drafter is not None

    def verify(drafts, sequences):  # type: ignore[no-untyped-def]
        verdict = original(drafts, sequences)
        (sequence,) = sequences
        known = len(sequence.provisional)
        steps.append(known)
        assert drafter.lengths[sequence.slot] == sequence.length + known
        if len(steps) % wrong == 0:
            verdict.logits[:, known + 1 :] = verdict.logits[:, known + 1 :].flip(-1)
        return verdict

    engine.decoder.verify = verify  # type: ignore[method-assign]
    assert alone(engine, PROMPTS[2]) == answer
    assert max(steps) == (1 if wrong == 1 else 2)


@pytest.mark.parametrize("stop_at", range(12))
def test_stop_token_anywhere_in_an_accepted_run_ends_the_answer(load: Load, stop_at: int) -> None:
    answer = alone(load(drafter=False), PROMPTS[3])
    stop = answer[stop_at]
    expected = answer[: answer.index(stop) + 1]
    engine = load(tree=DEEP_TREE)
    perfect_draft(engine, dict.fromkeys(range(3), answer))
    submit(engine, "a", PROMPTS[3], stop_token_ids=[stop])
    outputs = [
        output for _ in iter(lambda: engine.has_work, False) for output in engine.step().outputs
    ]
    assert [id for output in outputs for id in output.token_ids] == expected
    assert outputs[-1].finish_reason == "stop"
    assert all(output.accepted <= len(output.token_ids) for output in outputs)
    assert free_slots(engine) == [0, 1, 2]


@pytest.mark.parametrize("max_tokens", range(1, 13))
def test_length_limit_anywhere_in_an_accepted_run_is_exact(load: Load, max_tokens: int) -> None:
    answer = alone(load(drafter=False), PROMPTS[3])
    engine = load(tree=DEEP_TREE)
    perfect_draft(engine, dict.fromkeys(range(3), answer))
    submit(engine, "a", PROMPTS[3], max_tokens=max_tokens)
    outputs = [
        output for _ in iter(lambda: engine.has_work, False) for output in engine.step().outputs
    ]
    assert [id for output in outputs for id in output.token_ids] == answer[:max_tokens]
    assert outputs[-1].finish_reason == "length"


def test_answers_run_to_the_very_end_of_the_context(load: Load) -> None:
    prompt = [3] * 250
    plain, falcon = load(drafter=False), load(tree=DEEP_TREE)
    assert len(alone(falcon, prompt, max_tokens=6)) == 6
    assert alone(falcon, prompt, max_tokens=6) == alone(plain, prompt, max_tokens=6)


@pytest.mark.parametrize(("prompt", "max_tokens"), [([], 4), ([1] * 250, 7), ([1], -1)])
def test_a_request_that_does_not_fit_is_refused(
    load: Load, prompt: list[int], max_tokens: int
) -> None:
    engine = load()
    with pytest.raises(ValueError, match="max_tokens"):
        submit(engine, "a", prompt, max_tokens=max_tokens)
    assert not engine.has_work


def test_abort_frees_the_slot_before_the_next_step(load: Load) -> None:
    engine = load()
    for name in "abcde":
        submit(engine, name, PROMPTS[1])
    engine.step()
    engine.abort("b")
    engine.abort("e")
    engine.abort("never heard of")
    assert len(free_slots(engine)) == 1
    ids = drain(engine)
    assert set(ids) == {"a", "c", "d"}
    assert free_slots(engine) == [0, 1, 2]


def test_reports_count_what_the_outputs_hold(load: Load) -> None:
    engine = load()
    submit(engine, "a", PROMPTS[2])
    report = engine.step()
    assert (report.computed_tokens, report.cached_tokens) == (len(PROMPTS[2]), 0)
    assert report.drafted == SMALL_TREE.num_nodes - 1
    assert report.accepted_lengths == [len(report.outputs[0].token_ids) - 1]
    assert report.depths == report.accepted_lengths
    assert report.plans == {f"{SMALL_TREE.num_nodes - 1}x2": 1}
    assert report.plain == {}
    assert report.running == 1
    assert 0 < report.kv_usage < 1
    assert report.outputs[0].slot_ms >= report.draft_ms + report.verify_ms


@settings(max_examples=60)
@given(st.data())
def test_the_walk_follows_the_picks_and_stops_when_none_carries_them(data: st.DataObject) -> None:
    """`accept` against a recursive definition, on random tokens and picks of a tiny vocabulary."""
    decoder = walking_decoder()
    tokens = data.draw(st.lists(st.integers(0, 2), min_size=12, max_size=12))
    picks = data.draw(st.lists(st.integers(0, 2), min_size=12, max_size=12))
    logits = torch.nn.functional.one_hot(torch.tensor([picks]), 3).float()
    verdict = Verdict(logits, torch.zeros(1, 12, 1))
    sequence = Sequence(Submit("a", [1], 99, GREEDY, []), 0)
    rows = TreeRows.of(SMALL_TREE, 12, torch.device("cpu"))
    drafts = Drafts(torch.tensor([tokens]), [rows], passes=1)
    (path,) = decoder.accept(verdict, drafts, [sequence])
    at, visited = [0], [0]  # the node and its twins: the draft may hold a path twice
    while carriers := [
        n for node in at for n in SMALL_TREE.children(node) if tokens[n] == picks[at[0]]
    ]:
        at = carriers
        visited.append(at[0])
    assert path.walk.nodes == list(SMALL_TREE.path_to(at[0]))
    final = 1 + sum(not any(SMALL_TREE.paths[node]) for node in path.walk.nodes)
    assert path.picks == [picks[n] for n in visited[:final]]
    assert path.provisional == [picks[n] for n in visited[final:]]


def walking_decoder() -> SpeculativeDecoder:
    cpu = torch.device("cpu")
    target = SimpleNamespace(device=cpu)
    return SpeculativeDecoder(target, None, build_plan(SMALL_TREE, 2, cpu), Sampler(3, cpu))  # type: ignore[arg-type]


def test_a_plan_of_more_rows_than_are_computed_alike_is_refused(load: Load) -> None:
    with pytest.raises(DrafterError, match=r"41 nodes.*at most 32"):
        load(tree=Tree.from_paths((rank,) for rank in range(40)))


def test_a_drafter_of_another_target_is_refused(load: Load, tiny_llama: Path) -> None:
    with pytest.raises(DrafterError, match=f"hidden_size.*{target_fingerprint(tiny_llama)}"):
        load(hidden_size=64, fingerprint="of another")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_keeps_its_source_while_it_is_provisional(
    load: Load, dtype: Literal["float32", "bfloat16"]
) -> None:
    """Of each three tokens a side branch names two, which are given a step later."""
    answer = alone(load(drafter=False, dtype=dtype), PROMPTS[2])
    engine = load(dtype=dtype)
    branch_draft(engine, answer, BRANCH)
    submit(engine, "a", PROMPTS[2])
    expected = [["drafted"]] + [["drafted", "bonus", "drafted"]] * 2
    assert [engine.step().outputs[0].sources for _ in range(3)] == expected


def test_a_trace_shows_the_verified_tree_and_the_way_down(load: Load) -> None:
    answer = alone(load(drafter=False), PROMPTS[2])
    engine = load()
    branch_draft(engine, answer, BRANCH)
    submit(engine, "a", PROMPTS[2], trace=True)
    output = engine.step().outputs[0]
    assert output.trace is not None
    assert output.trace.parents == list(SMALL_TREE.parents)
    assert output.trace.tokens[0] == PROMPTS[2][-1]
    assert output.trace.path == [SMALL_TREE.paths.index(path) for path in BRANCH]
    assert [output.trace.tokens[node] for node in output.trace.path] == answer[:2]
    assert (output.trace.root, output.trace.provisional) == (0, 2)
    assert output.trace.passes == len(engine.decoder.plan.passes)
    assert output.trace.draft_ms > 0 < output.trace.verify_ms


def test_nothing_is_traced_unasked(load: Load) -> None:
    engine = load()
    submit(engine, "a", PROMPTS[0])
    assert engine.step().outputs[0].trace is None
