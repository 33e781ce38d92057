"""Every method of drafting in one engine: answers never change, and the slots keep in step."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fakes import save_random_drafter, save_random_target
from torch import Tensor
from transformers import LlamaConfig

from drafter.checkpoint import save_drafter, target_fingerprint
from drafter.config import DrafterError, Dynamic, MedusaConfig
from drafter.heads import AnyHead
from drafter.medusa import MedusaHead
from drafter.model import FalconHead
from drafter.naming import Naming
from drafter.tuned import TunedTree, save_trees
from engine.config import Dtype, EngineConfig, Speculation
from engine.draft_model import DraftModel
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import RequestOutput, SamplingParams, Submit
from tree.topology import ROOT_ONLY, Tree

VOCABULARY = 97
GREEDY = SamplingParams(temperature=0.0)
METHODS = ("falcon", "eagle", "medusa", "itself", "stranger", "lookahead")
CHAIN = Tree.from_paths([[0], [0, 0], [0, 0, 0], [1], [0, 1]])


def llama(layers: int = 2, vocabulary: int = VOCABULARY, context: int = 256) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=context,
    )


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_target(llama(), tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def drafters(target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each method; "itself" is the target as its own draft model."""
    folder = tmp_path_factory.mktemp("drafters")
    made = {
        "falcon": save_random_drafter(target, folder / "falcon"),
        "eagle": save_random_drafter(target, folder / "eagle", block_size=1, mixer="linear"),
        "stranger": save_random_target(llama(layers=1), folder / "stranger"),
    }
    fingerprint = target_fingerprint(target)
    config = MedusaConfig(
        hidden_size=32, vocab_size=VOCABULARY, fingerprint=fingerprint, block_size=3
    )
    save_drafter(MedusaHead(config), folder / "medusa", CHAIN)
    shutil.copytree(target, folder / "itself")
    (folder / "lookahead").mkdir()
    (folder / "lookahead" / "config.json").write_text('{"method": "lookahead", "window": 3}')
    return {method: made.get(method, folder / method) for method in METHODS}


def engine_with(
    target: Path,
    drafter: Path,
    dtype: Dtype = "float32",
    tree: Tree | None = None,
    speculation: Speculation = "always",
) -> Engine:
    config = EngineConfig(
        model=str(target),
        drafter=str(drafter),
        dtype=dtype,
        device="cpu",
        max_num_seqs=3,
        speculation=speculation,
    )
    return load_engine(config, tree)


def submits(speculative: bool) -> list[Submit]:
    """More than there are slots, of shared beginnings, greedy and sampled."""
    return [
        Submit(
            f"{number}",
            [5, 6, 7, *range(number // 2)],
            20 + number,
            SamplingParams(temperature=0.8 * (number % 2), seed=number),
            [],
            speculative=speculative or number == 3,
        )
        for number in range(7)
    ]


def answers(engine: Engine, requests: Sequence[Submit]) -> dict[str, list[RequestOutput]]:
    found: dict[str, list[RequestOutput]] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for output in engine.step().outputs:
            found.setdefault(output.request_id, []).append(output)
    return found


def ids(outputs: Sequence[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_changes_an_answer(
    method: str, dtype: Dtype, target: Path, drafters: dict[str, Path]
) -> None:
    engine = engine_with(target, drafters[method], dtype)
    drafted = answers(engine, submits(speculative=True))
    plain = answers(engine, submits(speculative=False))
    again = answers(engine, submits(speculative=True))  # from what the cache holds by now
    expected = {name: ids(own) for name, own in plain.items()}
    assert {name: ids(own) for name, own in drafted.items()} == expected
    assert {name: ids(own) for name, own in again.items()} == expected
    assert sum(output.drafted for own in drafted.values() for output in own) > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_chosen_by_its_costs(
    method: str, target: Path, drafters: dict[str, Path]
) -> None:
    """And the shortest prompt there is has nothing for a drafter to read."""
    engine = engine_with(target, drafters[method], speculation="auto")
    assert engine.policy.planner is not None
    assert len(engine.policy.planner.plans) > 1
    engine.policy.planner.choose = lambda batch: engine.decoder.plan  # type: ignore[method-assign]
    expected = ids(answers(engine, [Submit("a", [5], 20, GREEDY, [], speculative=False)])["a"])
    assert ids(answers(engine, [Submit("a", [5], 20, GREEDY, [])])["a"]) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["falcon", "eagle", "medusa", "stranger"])
def test_no_method_changes_an_answer_with_a_dynamic_plan(
    method: str, dtype: Dtype, target: Path, drafters: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "drafter"
    shutil.copytree(drafters[method], folder)
    paths = [[0], [0, 0], [0, 0, 0], [1], [0, 1], [2], [0, 0, 1], [3]]
    branches = [] if method == "stranger" else [[1, 0], [1, 0, 0], [2, 0]]
    dynamic = Dynamic(num_verified=5, least_trust=0.05, tau=1.5, passes=1.5)
    save_trees([TunedTree(Tree.from_paths(paths + branches), dynamic=dynamic)], folder)
    for speculation in ("always", "auto"):
        engine = engine_with(target, folder, dtype, speculation=speculation)
        assert engine.decoder.plan.dynamic == dynamic
        if engine.policy.planner is not None:
            plain, *others, own = engine.policy.planner.plans
            assert not plain.passes
            assert own is engine.decoder.plan
            assert all(part.tree.num_nodes <= dynamic.num_verified for part in others)
        drafted = answers(engine, submits(speculative=True))
        plain = answers(engine, submits(speculative=False))
        assert {name: ids(own) for name, own in drafted.items()} == {
            name: ids(own) for name, own in plain.items()
        }
        if speculation == "always":
            most = max(output.drafted for own in drafted.values() for output in own)
            assert most == dynamic.num_verified - 1


@pytest.mark.parametrize("method", ["falcon", "medusa", "stranger"])
def test_plans_for_several_numbers_of_requests(
    method: str, target: Path, drafters: dict[str, Path], tmp_path: Path
) -> None:
    """One of them not to draft, two the same, and the widest not the first."""
    folder = tmp_path / "drafter"
    shutil.copytree(drafters[method], folder)
    small = Tree.from_paths([[0], [1]])
    large = Tree.from_paths([[0], [0, 0], [1], [0, 1], [2], [3]])
    dynamic = Dynamic(num_verified=4, least_trust=0.05)
    trees = [
        TunedTree(ROOT_ONLY, 1),
        TunedTree(small, 2, {(0,): 0.6, (1,): 0.1}),
        TunedTree(large, 4, dynamic=dynamic),
        TunedTree(small, 8),
    ]
    save_trees(trees, folder)
    for speculation in ("always", "auto"):
        engine = engine_with(target, folder, "bfloat16", speculation=speculation)
        assert engine.decoder.plan.tree == small
        assert engine.decoder.most_verified == 4
        if engine.policy.planner is not None:
            plain, *plans = engine.policy.planner.plans
            assert not plain.passes
            assert [plan.tree for plan in plans].count(small) == 1
            assert [plan.dynamic for plan in plans].count(dynamic) == 1
        drafted = answers(engine, submits(speculative=True))
        plain_answers = answers(engine, submits(speculative=False))
        assert {name: ids(own) for name, own in drafted.items()} == {
            name: ids(own) for name, own in plain_answers.items()
        }


@pytest.mark.usefixtures("unrounded")
def test_a_model_that_drafts_for_itself_is_always_right(
    target: Path, drafters: dict[str, Path]
) -> None:
    """Its slots must then hold what it would compute anew: after every kind of step."""
    engine = engine_with(target, drafters["itself"], tree=Tree.from_paths([[0], [0, 0], [0, 0, 0]]))
    for outputs in answers(engine, submits(speculative=True)).values():
        whole = [output for output in outputs if output.finish_reason is None]
        assert all(output.accepted == 3 for output in whole)
        assert len(whole) >= 4


@torch.inference_mode()
@pytest.mark.usefixtures("unrounded")
def test_the_draft_model_holds_what_it_would_compute_anew(
    target: Path, drafters: dict[str, Path]
) -> None:
    engine = engine_with(target, drafters["stranger"])
    drafter = engine.decoder.drafter
    assert isinstance(drafter, DraftModel)
    first = answers(engine, submits(speculative=True)[:1])["0"]
    tokens = [5, 6, 7, *ids(first)][: drafter.lengths[0]]
    drafter.draft(
        [0], torch.tensor([0]), engine.decoder.plan, lambda own, naming: own.topk(naming.width)[1]
    )  # what it had only read it computes
    held = drafter.model.slots.tensor[:, :, 0, :, : len(tokens)].clone()
    drafter.model.scrub(0)
    drafter.model.prefill(0, 0, tokens)
    anew = drafter.model.slots.tensor[:, :, 0, :, : len(tokens)]
    torch.testing.assert_close(held, anew, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.usefixtures("unrounded")
def test_guesses_change_no_name_of_a_draft_model(target: Path, drafters: dict[str, Path]) -> None:
    """Right, wrong or none, in draft after draft: what was read in vain leaves nothing behind."""
    depth = 6
    chain = [(0,) * level for level in range(1, depth + 1)]
    tree = Tree.from_paths([*chain, (1,), (0, 0, 1)])
    decoder = engine_with(target, drafters["stranger"], tree=tree).decoder
    drafter, plan = decoder.drafter, decoder.plan
    assert isinstance(drafter, DraftModel)
    chooser = random.Random(0)
    ids = torch.tensor([chooser.randrange(97) for _ in range(12)])
    features = torch.zeros(depth + 1, 1)

    def rank(own: Tensor, naming: Naming) -> Tensor:
        return own.topk(naming.width).indices

    def drafts(errors: int | None) -> list[list[int]]:
        """Of six steps; each feeds back two tokens of the draft and another one."""
        drafter.reset(0)
        drafter.prefill(0, ids, features)
        root, found, forwards = int(ids[-1]), [], []
        wrong = random.Random(errors)

        def guess(path: Sequence[int], limit: int) -> list[int]:
            forwards.append(len(path))
            right = expected[len(found)][len(path) + 1 : len(path) + 1 + limit]
            return [(t + 1) % 97 if wrong.random() < (errors or 0) / 4 else t for t in right]

        for step in range(6):
            known = None if errors is None else guess
            drafted = drafter.draft([0], torch.tensor([root]), plan, rank, guess=known)
            found.append(drafted[0].tolist())
            root = (step * 31) % 97
            drafter.extend([0], torch.tensor([[*found[-1][1:3], root]]), features[None, :3], [3])
        if errors is not None:
            assert len(forwards) == 6 if not errors else 6 < len(forwards) <= 36
        return found

    expected = drafts(None)
    for errors in (0, 1, 3, 4):
        assert drafts(errors) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["coupled", "stranger", "eagle"])
def test_drafts_are_guessed_for_one_request_alone(
    kind: str, dtype: Dtype, target: Path, drafters: dict[str, Path], tmp_path: Path
) -> None:
    """Where the drafter takes guesses; the answer is the same with them, without, and plain."""
    folder = drafters.get(kind) or save_random_drafter(
        target, tmp_path / "coupled", CHAIN, coupled=True
    )
    engine = engine_with(target, folder, dtype)
    drafter = engine.decoder.drafter
    assert drafter is not None
    original, batches = drafter.draft, []

    def draft(slots, roots, plan, rank, mend=None, guess=None):  # type: ignore[no-untyped-def]
        batches.append((len(slots), guess is not None))
        return original(slots, roots, plan, rank, mend, guess)

    drafter.draft = draft  # type: ignore[method-assign]
    one = answers(engine, submits(speculative=True)[:1])
    assert set(batches) == {(1, kind != "eagle")}
    batches.clear()
    answers(engine, submits(speculative=True))
    assert {size for size, _ in batches} >= {2, 3}
    assert not any(guessed for size, guessed in batches if size > 1)
    batches.clear()
    drafter.takes_guesses = False
    alone = answers(engine, submits(speculative=True)[:1])
    assert set(batches) == {(1, False)}
    plain = answers(engine, submits(speculative=False)[:1])
    assert ids(one["0"]) == ids(alone["0"]) == ids(plain["0"])


def test_what_cannot_draft_for_the_target_is_refused(
    target: Path, drafters: dict[str, Path], tmp_path: Path
) -> None:
    other = save_random_target(llama(vocabulary=50), tmp_path / "other")
    with pytest.raises(DrafterError, match="50 output rows, the target 97"):
        engine_with(target, other)
    short = save_random_target(llama(context=64), tmp_path / "short")
    with pytest.raises(DrafterError, match="max_model_len 256 is more than the model's 64"):
        engine_with(target, short)
    branched = Tree.from_paths([[0], [1], [1, 0]])
    with pytest.raises(DrafterError, match="a chain, whose nodes may have siblings"):
        engine_with(target, drafters["stranger"], tree=branched)


@pytest.mark.parametrize(
    ("method", "kind"), [("falcon", FalconHead), ("eagle", FalconHead), ("medusa", MedusaHead)]
)
def test_a_folder_says_which_kind_it_holds(
    method: str, kind: type[AnyHead], target: Path, drafters: dict[str, Path]
) -> None:
    drafter = engine_with(target, drafters[method]).decoder.drafter
    assert drafter is not None
    assert isinstance(drafter.head, kind)
    assert drafter.num_bytes > 0
