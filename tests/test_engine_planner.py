"""The plan of each step follows from times and acceptance, and is never a losing one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import SMALL_TREE
from hypothesis import given
from hypothesis import strategies as st
from test_tree import trees

from drafter.config import Dynamic
from drafter.plan import build_plan
from engine.planner import (
    PROBE_STEPS,
    Costs,
    Planner,
    closed,
    interpolate,
    prior_reach,
    subtrees,
)
from tree.topology import ROOT_ONLY, Tree

CPU = torch.device("cpu")
CHEAP = Costs({16: 10.0, 32: 10.5, 64: 11.0}, *3 * [{1: 0.5, 8: 0.6}])
DEAR = Costs({16: 10.0, 32: 20.0, 64: 40.0}, *3 * [{1: 5.0, 8: 40.0}])
TREE = Tree.from_paths([[0] * depth for depth in range(1, 7)] + [[1], [2], [0, 1], [1, 0]])


def planner(costs: Costs, tree: Tree = TREE, acceptance: float | None = None) -> Planner:
    reach = prior_reach([tree])
    if acceptance is not None:
        reach = {path: acceptance ** len(path) / (1 + sum(path)) ** 3 for path in reach}
    plans = [build_plan(part, 2, CPU) for part in subtrees(tree, 2, reach)]
    return Planner(plans, costs, reach)


def test_cheap_drafts_that_are_accepted_are_chosen_whole() -> None:
    assert planner(CHEAP, acceptance=0.95).choose(1).tree == TREE


def test_nothing_is_drafted_where_it_would_cost_more_than_it_brings() -> None:
    assert planner(DEAR, acceptance=0.9).choose(8).tree == ROOT_ONLY
    assert planner(CHEAP, acceptance=0.01).choose(1).tree == ROOT_ONLY


@given(st.integers(1, 16), st.floats(0.0, 1.0), st.sampled_from([CHEAP, DEAR]))
def test_choice_is_never_predicted_slower_than_plain_decoding(
    batch: int, acceptance: float, costs: Costs
) -> None:
    chooser = planner(costs, acceptance=acceptance)
    chosen = chooser.choose(batch)
    rates = [chooser.rate(plan, batch) for plan in chooser.plans]
    assert chooser.rate(chosen, batch) == pytest.approx(max(rates))


def test_acceptance_is_learnt_and_forgotten() -> None:
    chooser = planner(CHEAP, acceptance=0.9)
    whole = chooser.choose(1)
    for _ in range(400):
        chooser.learn(whole, [], passes=1)
    assert chooser.tau(whole) == pytest.approx(1.0, abs=0.01)
    assert chooser.choose(1).tree == ROOT_ONLY
    for _ in range(400):
        chooser.learn(whole, [path for path in TREE.paths[1:] if not any(path)], passes=1)
    assert chooser.tau(whole) == pytest.approx(7.0, abs=0.05)
    assert chooser.choose(1).tree == TREE


def test_after_hard_text_the_deep_nodes_are_found_again() -> None:
    """A smaller plan sees the first levels only; what it learns of them counts for all below."""
    chooser = planner(CHEAP, acceptance=0.9)
    for _ in range(400):
        chooser.learn(chooser.choose(1), [], passes=1)
    shallow = next(plan for plan in chooser.plans if plan.tree.max_depth == 2)
    for _ in range(600):
        plan = chooser.choose(1)
        plan = plan if plan.passes else shallow
        chooser.learn(plan, [path for path in plan.tree.paths[1:] if not any(path)], passes=1)
    assert chooser.choose(1).tree.max_depth == TREE.max_depth


def test_a_plan_that_is_nearly_as_good_is_tried_again() -> None:
    """Acceptance is only counted while drafting: without a probe, plain decoding would stay."""
    costs = Costs({16: 10.0}, *3 * [{1: 0.5}])
    chooser = planner(costs, Tree.from_paths([[0]]), acceptance=0.03)
    chosen = [chooser.choose(1).tree.num_nodes for _ in range(2 * PROBE_STEPS + 2)]
    assert chosen.count(2) == 2


def test_rows_beyond_the_limit_take_more_forwards() -> None:
    limited = replace(CHEAP, row_limit=32)
    assert CHEAP.verify_ms(4, 16) == pytest.approx(11.0)
    assert limited.verify_ms(4, 16) == pytest.approx(2 * 10.5)
    assert limited.verify_ms(5, 16) == pytest.approx(2 * 10.5 + 10.0)


def test_times_between_measured_points_lie_between_them() -> None:
    table = {16: 10.0, 32: 12.0}
    assert [interpolate(table, at) for at in (1, 16, 24, 32, 64)] == [10, 10, 11, 12, 24]


@given(trees())
def test_every_part_of_a_tree_is_a_tree_and_the_whole_is_among_them(tree: Tree) -> None:
    parts = subtrees(tree, 2, prior_reach([tree]))
    assert parts[0] == ROOT_ONLY
    assert parts[-1] == tree or tree == ROOT_ONLY
    assert all(set(part.paths) <= set(tree.paths) for part in parts)
    assert len(set(parts)) == len(parts)


def test_what_lacks_its_parent_or_a_better_sibling_is_left_out() -> None:
    assert closed([(1,), (0, 0), (2, 0)]) == []
    assert closed([(0,), (1,), (1, 1), (0, 0)]) == [(0,), (0, 0), (1,)]
    assert set(closed(SMALL_TREE.paths[1:])) == set(SMALL_TREE.paths[1:])


def test_a_draft_costs_its_passes_and_their_blocks() -> None:
    costs = Costs({16: 10.0}, first={1: 2.0, 3: 4.0}, later={1: 1.0}, block={1: 0.1, 3: 0.3})
    assert costs.draft_ms(1, ()) == 0.0
    assert costs.draft_ms(0, (1,)) == 0.0
    assert costs.draft_ms(1, (1,)) == pytest.approx(2.0)
    assert costs.draft_ms(2, (1, 1, 4)) == pytest.approx(3.0 + 2 * 2.0 + 3 * 0.2)


def test_what_was_counted_goes_before_what_is_guessed() -> None:
    other = Tree.from_paths([[0], [1], [1, 0]])
    reach = prior_reach([TREE, other], {(0,): 0.5, (0, 0): 0.4})
    assert set(reach) == {*TREE.paths[1:], *other.paths[1:]}
    assert (reach[0,], reach[0, 0]) == (0.5, 0.4)
    assert 0 < reach[0, 0, 0] < 0.4
    assert 0 < reach[1, 0] < reach[1,] < 0.5


def test_trees_share_what_is_learnt_of_their_paths() -> None:
    small, large = Tree.from_paths([[0]]), Tree.from_paths([[0], [1], [0, 0]])
    plans = [build_plan(tree, 2, CPU) for tree in (ROOT_ONLY, small, large)]
    chooser = Planner(plans, CHEAP, prior_reach([small, large]))
    for _ in range(400):
        chooser.learn(plans[1], [(0,)], passes=1)
    assert chooser.reach[0,] == pytest.approx(1.0, abs=0.01)
    assert chooser.choose(1).tree == large


def test_a_dynamic_plan_is_weighed_by_what_its_steps_come_to() -> None:
    """Its tree has nodes that most drafts leave out: neither their chances nor passes add up."""
    tuned = Dynamic(num_verified=4, least_trust=0.3, tau=2.5, passes=1.5)
    plans = [build_plan(ROOT_ONLY, 2, CPU), build_plan(TREE, 2, CPU, tuned)]
    chooser = Planner(plans, CHEAP, prior_reach([TREE]))
    plan = plans[1]
    assert chooser.tau(plan) == 2.5
    one, two = (CHEAP.draft_ms(1, plan.blocks[:n]) for n in (1, 2))
    assert chooser.draft_ms(plan, 1) == pytest.approx((one + two) / 2)
    for _ in range(400):
        chooser.learn(plan, [(0,), (0, 0), (0, 0, 0)], passes=2)
    assert chooser.tau(plan) == pytest.approx(4.0, abs=0.01)
    assert chooser.draft_ms(plan, 1) == pytest.approx(two, rel=0.01)
    assert chooser.choose(1) is plan
    assert chooser.reach[0, 0, 0] == pytest.approx(1.0, abs=0.01)  # so that fixed plans know
    for _ in range(400):
        chooser.learn(plan, [], passes=1)
    assert chooser.tau(plan) == pytest.approx(1.0, abs=0.01)
    assert chooser.reach[0,] == pytest.approx(0.0, abs=0.01)
    assert chooser.choose(1) is plans[0]


def test_dynamic_plans_are_found_again_and_tried_in_vain_rarely() -> None:
    """Several of them, as tuned for several batch sizes, beside a small tree that is tried."""
    shapes = [Dynamic(num_verified=count, tau=3.0, passes=1.0) for count in (3, 4, 5, 6)]
    trees = [ROOT_ONLY, Tree.from_paths([[0], [1]])]
    plans = [build_plan(tree, 2, CPU) for tree in trees]
    dynamic = [build_plan(TREE, 2, CPU, own) for own in shapes]
    chooser = Planner([*plans, *dynamic], CHEAP, prior_reach([TREE]))
    drafted = 0
    for step in range(6000):
        plan = chooser.choose(1)
        if plan.passes:
            chooser.learn(plan, [], passes=1)
            drafted += step >= 1000
    assert 0 < drafted < 0.03 * 5000
    for _ in range(20_000):
        plan = chooser.choose(1)
        if plan.passes:
            chooser.learn(plan, [(0,), (0, 0)] if plan in dynamic else [(0,)], passes=1)
    assert chooser.choose(1) in dynamic
