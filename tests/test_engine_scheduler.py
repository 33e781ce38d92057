"""Slots are never lost, shared or starved, whatever happens in whatever order."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.messages import SamplingParams, Submit
from engine.scheduler import Scheduler
from engine.sequence import Sequence

NUM_SLOTS = 3
BUDGET = 4
PATIENCE = 60  # steps in which a request of at most 8 + 6 tokens must begin, with 3 slots


def request(name: str, prompt: list[int], max_tokens: int = 4, key: str = "") -> Submit:
    return Submit(name, prompt, max_tokens, SamplingParams(), [], key=key)


class FakeEngine:
    """A scheduler with a model that gives one or two tokens a step, and columns that remember.

    `columns[slot]` are the tokens whose keys and values the slot would hold.
    """

    def __init__(self, num_slots: int = NUM_SLOTS) -> None:
        self.scheduler = Scheduler(num_slots)
        self.columns: list[list[int]] = [[] for _ in range(num_slots)]
        self.waiting: dict[str, int] = {}
        self.finished: list[str] = []
        self.steps = 0

    def submit(self, submit: Submit) -> None:
        self.waiting[submit.request_id] = self.steps
        self.scheduler.submit(submit)

    def abort(self, name: str) -> None:
        self.waiting.pop(name, None)
        self.scheduler.abort(name)

    def step(self, picks: list[int], fails: bool = False) -> None:
        self.steps += 1
        for admission in self.scheduler.admit():
            sequence = admission.sequence
            held = self.columns[admission.source][: sequence.length]
            assert held == sequence.ids[: sequence.length], "a prefix that the source lacks"
            self.columns[sequence.slot] = list(held)
            del self.waiting[sequence.request.request_id]
        chunks = self.scheduler.chunks(BUDGET)
        assert sum(chunk.stop - chunk.start for chunk in chunks) <= BUDGET
        for chunk in chunks:
            sequence = chunk.sequence
            assert chunk.start == sequence.length < chunk.stop
            self.columns[sequence.slot] += sequence.ids[chunk.start : chunk.stop]
            sequence.length = chunk.stop
        for number, sequence in enumerate(self.scheduler.running):
            if fails and number == 0:
                self.columns[sequence.slot] = []
                self.scheduler.release(sequence, is_sound=False)
            else:
                self.decode(sequence, picks)

    def decode(self, sequence: Sequence, picks: list[int]) -> None:
        self.columns[sequence.slot] += [sequence.ids[-1], *picks[:-1]]
        sequence.append(picks)
        del self.columns[sequence.slot][sequence.length :]
        if sequence.finish_reason is not None:
            self.finished.append(sequence.request.request_id)
            self.scheduler.release(sequence)

    def check(self) -> None:
        scheduler = self.scheduler
        held = {s.slot: s for s in scheduler.sequences.values()}
        assert len(held) == len(scheduler.sequences), "one slot for two sequences"
        for slot in scheduler.slots:
            assert slot.sequence is held.get(slot.index), "a slot lost or taken twice"
            assert slot.tokens == self.columns[slot.index][: len(slot.tokens)]
        assert scheduler.num_waiting == len(self.waiting)
        assert all(scheduler.waiting.values()), "an empty queue left behind"
        oldest = min(self.waiting.values(), default=self.steps)
        assert self.steps - oldest < PATIENCE * (1 + len(self.waiting)), "a request starves"


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.engine = FakeEngine()
        self.count = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=8),
        max_tokens=st.integers(1, 6),
        key=st.sampled_from("ab"),
    )
    def submit(self, prompt: list[int], max_tokens: int, key: str) -> None:
        self.count += 1
        self.engine.submit(request(str(self.count), prompt, max_tokens, key))

    @rule(back=st.integers(0, 8))
    def abort(self, back: int) -> None:
        self.engine.abort(str(self.count - back))

    @rule(picks=st.lists(st.integers(0, 1), min_size=1, max_size=2), fails=st.booleans())
    def step(self, picks: list[int], fails: bool) -> None:
        self.engine.step(picks, fails)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.engine.check()

    def teardown(self) -> None:
        for _ in range(20 * (self.count + 1)):
            self.engine.step([0])
        self.engine.check()
        assert not self.engine.scheduler.has_work


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestScheduler = SchedulerMachine.TestCase


def test_a_hundred_thousand_random_steps_lose_nothing() -> None:
    dice = random.Random(0)
    engine, count = FakeEngine(5), 0
    for _ in range(100_000):
        if dice.random() < 0.22 and engine.scheduler.num_waiting < 20:
            count += 1
            prompt = [dice.randrange(2) for _ in range(dice.randrange(1, 12))]
            key = dice.choice("abc")
            engine.submit(request(str(count), prompt, dice.randrange(1, 7), key))
        if dice.random() < 0.05:
            engine.abort(str(count - dice.randrange(10)))
        engine.step([dice.randrange(2) for _ in range(dice.choice((1, 2)))], dice.random() < 0.02)
        engine.check()
    while engine.scheduler.has_work:
        engine.step([0])
    assert len(engine.finished) > 10_000


def admit(scheduler: Scheduler, submit: Submit) -> Sequence:
    scheduler.submit(submit)
    (admission,) = scheduler.admit()
    admission.sequence.length = len(submit.prompt_ids) - 1
    return admission.sequence


def test_a_conversation_goes_on_in_its_own_slot() -> None:
    scheduler = Scheduler(3)
    for name, first in (("a", 1), ("b", 2)):
        sequence = admit(scheduler, request(name, [first, 5, 6, 7]))
        sequence.append([8, 9])
        scheduler.release(sequence)
    again = admit(scheduler, request("a2", [1, 5, 6, 7, 8, 9, 4, 4]))
    assert (again.slot, again.cached_tokens) == (0, 5)


def test_a_shared_beginning_is_copied_and_leaves_the_other_conversation_cached() -> None:
    scheduler = Scheduler(2)
    first = admit(scheduler, request("a", [1, 2, 3, 4, 5, 6, 7, 8]))
    scheduler.release(first)
    second = admit(scheduler, request("b", [1, 2, 9, 9, 9]))
    assert (second.slot, second.cached_tokens) == (1, 2)
    assert scheduler.slots[0].cached == [1, 2, 3, 4, 5, 6, 7]


def test_a_running_sequence_shares_its_prompt() -> None:
    scheduler = Scheduler(2)
    admit(scheduler, request("a", [1, 2, 3, 4]))
    assert admit(scheduler, request("b", [1, 2, 3, 4])).cached_tokens == 3


def test_what_failed_is_not_cached() -> None:
    scheduler = Scheduler(1)
    scheduler.release(admit(scheduler, request("a", [1, 2, 3])), is_sound=False)
    assert admit(scheduler, request("b", [1, 2, 3])).cached_tokens == 0


def test_a_key_that_floods_waits_behind_one_that_does_not() -> None:
    scheduler = Scheduler(2)
    for number in range(6):
        scheduler.submit(request(f"flood {number}", [1], key="flood"))
    scheduler.admit()
    scheduler.submit(request("polite", [1], key="polite"))
    scheduler.release(scheduler.sequences["flood 0"])
    scheduler.admit()
    assert list(scheduler.sequences) == ["flood 1", "polite"]


@pytest.mark.parametrize("budget", [1, 5, 100])
def test_prompts_are_prefilled_oldest_first_within_the_budget(budget: int) -> None:
    scheduler = Scheduler(2)
    for name in "ab":
        scheduler.submit(request(name, [3] * 7))
    scheduler.admit()
    for sequence in scheduler.sequences.values():
        sequence.length = 0
    order = []
    while chunks := scheduler.chunks(budget):
        assert sum(chunk.stop - chunk.start for chunk in chunks) <= budget
        for chunk in chunks:
            chunk.sequence.length = chunk.stop
            order += [chunk.sequence.request.request_id] * (chunk.stop - chunk.start)
    assert order == ["a"] * 6 + ["b"] * 6
