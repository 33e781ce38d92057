"""Drafting on slots against the head's own teacher-forced forward: positions, masks, state."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drafter.config import DrafterConfig, DrafterError
from drafter.drafting import FalconDrafter, stretch
from drafter.model import MAX_FED_BACK, FalconHead, TargetParts
from drafter.naming import Family, Naming
from drafter.plan import build_plan
from tree.topology import Tree

V, H = 48, 32
CPU = torch.device("cpu")
SLOTS = 3
SIZES: list[dict[str, int | str | bool | None]] = [
    {"block_size": block_size, "mixer": mixer, "window": window}
    for block_size in (1, 2, 3, 4)
    for mixer in ("lstm", "linear")
    for window in (None, 2 * block_size + 1)  # no shorter than a draft: a row sees its whole path
]
SIZES += [{"block_size": 3, "num_layers": 2}, {"block_size": 2, "num_layers": 3, "window": 7}]
COUPLED = [
    {"block_size": size, "num_layers": size - 1, "mixer": mixer, "window": window, "coupled": True}
    for size, mixer, window in ((2, "linear", None), (3, "lstm", None), (4, "linear", 9))
]
SIZES += COUPLED


def best(logits: Tensor, naming: Naming) -> Tensor:
    return logits.topk(naming.width).indices


class Setup:
    """A random head on some slots, and what was fed to each slot."""

    def __init__(self, **sizes: int | str | bool | None) -> None:
        torch.manual_seed(0)
        config = DrafterConfig(hidden_size=H, vocab_size=V, **sizes)  # type: ignore[arg-type]
        self.embedding = torch.nn.Embedding(V, H)
        self.weight = torch.randn(V, H)
        self.parts = TargetParts(self.embedding, lambda features: features @ self.weight.T)
        self.teacher = FalconHead(config).eval()
        self.coupling = self.teacher.coupling
        if self.coupling is not None:  # it starts as next to nothing
            torch.nn.init.normal_(self.coupling.start.weight, std=0.3)
            for weight in self.coupling.told.parameters():
                torch.nn.init.normal_(weight, std=0.3)
        self.head = copy.deepcopy(self.teacher)
        self.k = config.block_size
        chain = [[0] * depth for depth in range(1, 3 * self.k + 1)]
        side = [[1] + [0] * depth for depth in range(2 * self.k)]
        twin = [[0, 1] + [0] * depth for depth in range(2 * self.k - 1)]  # a branch within a block
        self.tree = Tree.from_paths([*chain, *side, *twin])
        self.plan = build_plan(self.tree, self.k, CPU)
        self.head.arrange()
        self.drafter = FalconDrafter(self.head, self.parts, SLOTS, 96, self.plan.num_rows)
        self.fed = [torch.zeros(0, dtype=torch.long)] * SLOTS
        self.features = [torch.zeros(0, H)] * SLOTS

    def prefill(self, slot: int, count: int) -> None:
        self.drafter.reset(slot)
        ids, features = torch.randint(V, (1 + count,)), torch.randn(count, H)
        self.drafter.prefill(slot, ids, features)
        self.fed[slot], self.features[slot] = ids[1:], features

    def extend(self, counts: list[int]) -> None:
        width = max(counts)
        tokens, features = torch.randint(V, (SLOTS, width)), torch.randn(SLOTS, width, H)
        self.drafter.extend(list(range(SLOTS)), tokens, features, counts)
        for slot, count in enumerate(counts):
            self.fed[slot] = torch.cat((self.fed[slot], tokens[slot, :count]))
            self.features[slot] = torch.cat((self.features[slot], features[slot, :count]))

    def draft(self, slots: list[int]) -> tuple[Tensor, list[tuple[Naming, Tensor]]]:
        """Tokens [B,N], and each naming with its logits [B,E,L,V]."""
        logits: list[tuple[Naming, Tensor]] = []

        def rank(own: Tensor, naming: Naming) -> Tensor:
            levels = 1 if self.coupling is not None else self.k
            assert own.shape[2] == levels
            assert naming.depth == len(logits) * levels + 1
            logits.append((naming, own))
            return best(own, naming)

        roots = torch.stack([self.fed[slot][-1] for slot in slots])
        return self.drafter.draft(slots, roots, self.plan, rank), logits

    def expected(self, tokens: Tensor, features: Tensor, named: Tensor) -> Tensor:
        """Features [K,H] that the head predicts at the last block, right-aligned: [S], [S,H], where
        `named` [K] follows.
        """
        offset = -len(tokens) % self.k
        whole = torch.cat((tokens, named))
        told = [
            whole[[max(0, i + self.k - back) for i in range(len(tokens))]]
            for back in range(1, self.k + 1)
        ]  # position i is to say the K-th token behind its own
        words = self.embedding(torch.stack(told, -1))[None]
        predicted = self.teacher(self.embedding(tokens)[None], features[None], offset, words)
        return predicted[0, -self.k :]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.inference_mode()
def test_passes_equal_the_teacher_forced_head(sizes: dict[str, int | str | bool | None]) -> None:
    """After prefill, uneven steps and reuse of a slot, on every block of every pass."""
    check_drafts(Setup(**sizes))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.inference_mode()
def test_a_chain_of_blocks_needs_no_bias(sizes: dict[str, int | str | bool | None]) -> None:
    setup = Setup(**sizes)
    setup.prefill(1, 11)
    assert not setup.plan.see_all
    depth = setup.tree.max_depth
    chain = build_plan(Tree.from_paths((0,) * n for n in range(1, depth + 1)), setup.k, CPU)
    assert chain.see_all
    drafts = []
    for setup.plan in (chain, replace(chain, see_all=False)):
        drafts.append(setup.draft([1]))
    (tokens, without), (same, biased) = drafts
    assert torch.equal(tokens, same)
    for (_, one), (_, other) in zip(without, biased, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sizes", COUPLED, ids=str)
@torch.inference_mode()
def test_what_slots_are_told_need_not_be_kept(
    sizes: dict[str, int | str | bool | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drafter.lean.TOLD_BYTES", 0)
    setup = Setup(**sizes)
    assert setup.drafter.telling is not None
    assert setup.drafter.telling.table is None
    check_drafts(setup)


class Oracle:
    """Guesses from a known draft, of which it gets some tokens wrong; counts what is asked."""

    def __init__(self, chain: list[int], wrong: set[int]) -> None:
        self.said = [(token + 1) % V if n in wrong else token for n, token in enumerate(chain)]
        self.asked: list[list[int]] = []

    def __call__(self, path: Sequence[int], limit: int) -> list[int]:
        self.asked.append(list(path))
        return self.said[len(path) : len(path) + limit]


@pytest.mark.parametrize("kept", [True, False], ids=["table", "no table"])
@pytest.mark.parametrize("sizes", COUPLED, ids=str)
@torch.inference_mode()
def test_a_guess_changes_how_many_slots_run_at_once_and_nothing_else(
    sizes: dict[str, int | str | bool | None], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr("drafter.lean.TOLD_BYTES", 0)
    setup = Setup(**sizes)
    setup.prefill(1, 11)
    depth = 3 * setup.k - 1  # the last pass has a slot less
    chain = [(0,) * n for n in range(1, depth + 1)]
    plan = build_plan(Tree.from_paths([*chain, (1,), (0, 1), (*chain[-2], 1)]), setup.k, CPU)
    root = setup.fed[1][-1:]
    expected = setup.drafter.draft([1], root, plan, best)
    tokens: list[int] = expected[0, 1 : depth + 1].tolist()
    runs = {}
    for wrong in (set(), {0}, {depth - 2}, set(range(depth)), {0, 3, 4}):
        oracle = Oracle(tokens, wrong)
        found = setup.drafter.draft([1], root, plan, best, guess=oracle)
        assert torch.equal(found, expected)
        assert all(path == tokens[: len(path)] for path in oracle.asked)
        runs[len(wrong)] = len(oracle.asked)
    assert runs[0] == len(plan.passes)
    assert runs[depth] == depth
    silent = setup.drafter.draft([1], root, plan, best, guess=lambda path, limit: [])
    assert torch.equal(silent, expected)


@torch.inference_mode()
def test_a_guess_is_asked_for_only_where_slots_have_one_node_each() -> None:
    """Of three passes the third."""
    setup = Setup(block_size=2, coupled=True)
    setup.prefill(1, 11)
    root = setup.fed[1][-1:]
    expected = setup.drafter.draft([1], root, setup.plan, best)
    asked = Oracle([0] * 6, set())
    assert torch.equal(setup.drafter.draft([1], root, setup.plan, best, guess=asked), expected)
    assert {len(path) for path in asked.asked} == {4, 5}


@torch.inference_mode()
def test_a_draft_stops_within_a_run() -> None:
    """Slots that ran together are named one after the other, until no more is to be named."""
    setup = Setup(block_size=4, mixer="linear", coupled=True)
    setup.prefill(1, 11)
    plan = build_plan(Tree.from_paths((0,) * n for n in range(1, 9)), setup.k, CPU)
    root = setup.fed[1][-1:]
    whole = setup.drafter.draft([1], root, plan, best)[0].tolist()
    for levels in range(1, 9):

        def mend(logits: Tensor, tokens: Tensor, naming: Naming, last: int = levels) -> bool:
            return naming.depth < last

        oracle = Oracle(whole[1:], {5})
        found = setup.drafter.draft([1], root, plan, best, mend, oracle)[0].tolist()
        assert found == whole[: levels + 1] + [0] * (8 - levels)


def test_a_prompt_is_read_in_stretches_of_few_lengths() -> None:
    lengths = set()
    for left in range(1, 2049):
        while left:
            lengths.add(stretch(left))
            left -= stretch(left)
    assert lengths == {*range(1, 32), *(2**power for power in range(5, 12))}
    assert [stretch(left) for left in (300, 44, 12)] == [256, 32, 12]


@torch.inference_mode()
def test_an_lstm_that_cannot_be_packed_drafts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drafter.model.is_packable", lambda lstm: False)
    setup = Setup(block_size=2)
    assert isinstance(setup.head.mixer, torch.nn.LSTM)
    check_drafts(setup)


def check_drafts(setup: Setup) -> None:
    chooser = random.Random(0)
    for slot, count in enumerate((45, 7, 1)):
        setup.prefill(slot, count)
    setup.extend([5, 2, 2])
    setup.prefill(0, 11)
    for _ in range(6):
        setup.extend([chooser.randint(1, 5) for _ in range(SLOTS)])
    for slots in ([0, 1, 2], [2, 0], [1]):  # neighbours, others, and one alone
        drafted, logits = setup.draft(slots)
        for b, slot in enumerate(slots):
            check_passes(setup, slot, drafted[b], [(n, own[b]) for n, own in logits])


def check_passes(
    setup: Setup, slot: int, drafted: Tensor, logits: list[tuple[Naming, Tensor]]
) -> None:
    tree, k = setup.tree, setup.k
    rows = {  # the logits that name each node's children
        family.parent: own.flatten(0, 1)[family.row]
        for naming, own in logits
        for family in naming.families
    }
    ends = (0,) * 3 * k, (1, *(0,) * (2 * k - 1)), (0, 1, *(0,) * (2 * k - 2))
    for chain in map(tree.paths.index, ends):
        tokens, features = setup.fed[slot], setup.features[slot]
        path = tree.path_to(chain)
        for number in range(len(path) // k):
            nodes = path[number * k : (number + 1) * k]
            predicted = setup.expected(tokens, features, drafted[list(nodes)])
            found = torch.stack([rows[tree.parents[node]] for node in nodes])
            torch.testing.assert_close(found, predicted @ setup.weight.T, atol=1e-4, rtol=1e-4)
            best = found.topk(2).indices
            ranks = [tree.ranks[node] for node in nodes]
            assert drafted[list(nodes)].tolist() == best[range(k), ranks].tolist()
            tokens = torch.cat((tokens, drafted[list(nodes)]))
            features = torch.cat((features, predicted))


def test_a_plan_that_does_not_fit_the_scratch_is_refused() -> None:
    setup = Setup(block_size=2)
    setup.prefill(0, 8)
    small = FalconDrafter(setup.head, setup.parts, 2, 96, scratch=2)
    with pytest.raises(ValueError, match="room for 2"):
        small.draft(
            [0],
            torch.tensor([1]),
            setup.plan,
            best,
        )


def test_a_tree_deeper_than_a_step_can_feed_back_is_refused() -> None:
    tree = Tree.from_paths([[0] * depth for depth in range(1, MAX_FED_BACK + 1)])
    with pytest.raises(DrafterError, match=f"at most {MAX_FED_BACK - 1}"):
        build_plan(tree, 2, CPU)


def test_block_rows_of_the_picture() -> None:
    """`DraftPlan`: a block, then two below it whose columns come first."""
    paths = [*([0] * depth for depth in range(1, 6)), [0, 0, 0, 1], [0, 0, 0, 1, 0]]
    plan = build_plan(Tree.from_paths(paths), 2, CPU)
    assert plan.offsets.tolist() == [0, 1, 2, 3, 4, 5, 4, 5]
    rows = ["".join("0" if value == 0 else "." for value in row) for row in plan.bias.tolist()]
    picture = ["......", "....00", "00..00", "..0000"]
    assert rows == [row for row in picture for _ in range(2)]


@pytest.mark.parametrize("coupled", [False, True])
@torch.inference_mode()
def test_drafts_survive_features_that_are_not_finite(coupled: bool) -> None:
    """What a bad draft leaves in the scratch columns is never read by the next one."""
    setup = Setup(block_size=2, coupled=coupled)
    setup.prefill(0, 9)
    expected, _ = setup.draft([0])
    setup.drafter.keys_values[:, :, 0, :, : setup.plan.num_rows] = torch.nan
    found, logits = setup.draft([0])
    assert torch.equal(found, expected)
    assert all(bool(own.isfinite().all()) for _, own in logits)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("slots", [[0], [0, 1]], ids=str)
@torch.inference_mode()
def test_a_slot_that_holds_nothing_drafts_finite_scores(slots: list[int], coupled: bool) -> None:
    """A prompt of one token leaves nothing below the root."""
    setup = Setup(block_size=2, coupled=coupled)
    setup.fed = [torch.ones(1, dtype=torch.long)] * SLOTS
    _, logits = setup.draft(slots)
    assert all(bool(own.isfinite().all()) for _, own in logits)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("window", [None, 7])
@torch.inference_mode()
def test_reduced_precision_predicts_what_float32_does(coupled: bool, window: int | None) -> None:
    setup = Setup(block_size=2, coupled=coupled, window=window)
    ids, features = torch.randint(V, (41,)), torch.randn(40, H)
    head = copy.deepcopy(setup.teacher).to(torch.bfloat16)
    head.arrange()
    parts = TargetParts(setup.embedding, lambda own: setup.parts.head(own.float()))
    drafter = FalconDrafter(head, parts, 1, 96, setup.plan.num_rows)
    assert drafter.keys_values.dtype == torch.float32  # on a CPU
    drafter.prefill(0, ids[:21], features[:20])
    drafter.prefill(0, ids[20:], features[20:])  # around the ring, where there is one
    first: list[Tensor] = []

    def rank(own: Tensor, naming: Naming) -> Tensor:
        if naming.number == 0:
            first.append(own[0, 0])
        return best(own, naming)

    drafted = drafter.draft([0], ids[-1:], setup.plan, rank)[0]
    expected = setup.parts.head(setup.expected(ids[1:], features, drafted[1:3]))
    torch.testing.assert_close(torch.cat(first), expected, atol=0.2, rtol=0.02)


def test_a_head_that_was_not_arranged_is_refused() -> None:
    setup = Setup(block_size=2)
    with pytest.raises(ValueError, match="arrange"):
        FalconDrafter(setup.teacher, setup.parts, 1, 96, 0)


def test_families_say_which_row_names_whose_children() -> None:
    """The picture of `tree/tables.py`, and a second pass below node 2."""
    tree = Tree.from_paths([(0,), (0, 0), (1,), (1, 0), (0, 0, 0), (0, 0, 1)])
    first, second = build_plan(tree, 2, CPU).passes
    below = Family(2, (3, 6), 0)
    assert first.whole.families == (Family(0, (1, 4), 0), Family(1, (2,), 1), Family(4, (5,), 1))
    assert second.whole.families == (below,)
    first_slots, second_slots = (
        [slot.naming.families for slot in tables.by_slot] for tables in (first, second)
    )
    assert first_slots == [(Family(0, (1, 4), 0),), (Family(1, (2,), 0), Family(4, (5,), 1))]
    assert second_slots == [(below,)]


def test_slots_are_told_their_nodes_and_those_above_in_the_block() -> None:
    """The picture of `SlotTables`."""
    tree = Tree.from_paths([(0,), (0, 0), (1,), (1, 0)])  # nodes 1, 2, 3, 4
    (only,) = build_plan(tree, 2, CPU).passes
    numbers = torch.arange(5)
    first, second = (
        [numbers[index].tolist() for index in (slot.told, slot.rows, slot.ends)]
        for slot in only.by_slot
    )
    assert first == [[0], [0], [1]]
    assert second == [[1, 0, 3, 0], [1, 1], [1, 1]]
