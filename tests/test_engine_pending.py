"""Who goes to the engine, who waits, and who is blamed for a death: no process, no clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.messages import RequestOutput, SamplingParams, Submit, TokenLogprobs
from engine.pending import Pending, Request


def submit(request_id: str, key: str = "") -> Submit:
    return Submit(request_id, [1], 100, SamplingParams(), [0], key=key)


def filled(*names: str, room: int = 8) -> Pending:
    """Requests named like their key and a number: a1 is of key a."""
    pending = Pending(room)
    for name in names:
        pending.add(submit(name, name[0]))
    return pending


def sent(pending: Pending) -> list[str]:
    """Whatever may go inside now, in order."""
    ids = []
    while (request := pending.next()) is not None:
        ids.append(request.id)
    return ids


def token(request_id: str, token: int = 7, end: bool = False) -> RequestOutput:
    return RequestOutput(request_id, [token], "stop" if end else None, 0, 0, 5)


def texts(request: Request) -> list[int]:
    found = []
    while not request.outputs.empty():
        output = request.outputs.get_nowait()
        assert isinstance(output, RequestOutput)
        found += output.token_ids
    return found


def test_the_key_with_fewer_inside_goes_first_and_then_the_older_request() -> None:
    pending = filled("a1", "a2", "b1", "a3", "b2")
    assert sent(pending) == ["a1", "b1", "a2", "b2", "a3"]


def test_room_is_kept_but_every_key_has_a_place() -> None:
    pending = filled("a1", "a2", "a3", room=2)
    assert sent(pending) == ["a1", "a2"]
    pending.add(submit("b1", "b"))
    pending.add(submit("b2", "b"))
    assert sent(pending) == ["b1"]
    pending.take(token("a1", end=True))
    assert sent(pending) == []
    pending.take(token("a2", end=True))
    assert sent(pending) == ["a3"]


def test_after_a_death_the_request_goes_on_behind_what_it_was_given() -> None:
    pending = filled("a1")
    sent(pending)
    pending.take(token("a1", 3))
    assert pending.engine_died() is None
    request = pending.next()
    assert request is not None
    assert request.remainder.output_ids == [3]
    pending.take(RequestOutput("a1", [4], None, 0, 0, cached_tokens=99))
    assert request.given == [3, 4]
    outputs = [request.outputs.get_nowait() for _ in range(2)]
    assert [o.cached_tokens for o in outputs if isinstance(o, RequestOutput)] == [5, 5]


def test_suspects_run_alone_and_first_and_make_way_when_cleared() -> None:
    pending = filled("a1", "a2")
    sent(pending)
    pending.engine_died()
    pending.add(submit("b1", "b"))
    assert sent(pending) == ["a1"]
    assert pending.take(token("a1"))  # it is to be aborted
    assert not pending.take(token("a1"))  # what it said before it heard of that
    assert sent(pending) == []
    pending.forgotten("a1")
    assert sent(pending) == ["a2"]
    assert not pending.take(token("a2"))  # nobody else to be tried: it stays
    assert sent(pending) == ["b1", "a1"]
    assert texts(pending.requests["a1"]) == [7, 7]


def test_who_dies_alone_for_the_second_time_is_the_culprit() -> None:
    pending = filled("a1", "a2")
    sent(pending)
    assert pending.engine_died() is None
    assert sent(pending) == ["a1"]
    culprit = pending.engine_died()
    assert culprit is not None
    assert culprit.id == "a1"
    assert sent(pending) == ["a2"]


def test_a_request_that_dies_alone_at_first_gets_another_chance() -> None:
    pending = filled("a1")
    sent(pending)
    assert pending.engine_died() is None
    assert sent(pending) == ["a1"]


def test_a_token_between_two_deaths_clears() -> None:
    pending = filled("a1")
    for _ in range(5):
        sent(pending)
        assert pending.engine_died() is None
        sent(pending)
        pending.take(token("a1"))


def test_an_output_without_tokens_does_not_clear() -> None:
    pending = filled("a1")
    sent(pending)
    pending.engine_died()
    sent(pending)
    pending.take(RequestOutput("a1", [], None, 0, 0))
    assert pending.engine_died() is not None


def test_scores_of_a_prompt_clear_and_are_not_asked_for_again() -> None:
    pending = filled("a1")
    scores = [TokenLogprobs(-1.0, [], [])] * 3
    for round_ in range(1, 4):
        sent(pending)
        assert pending.engine_died() is None
        sent(pending)
        pending.take(RequestOutput("a1", [], None, 0, 0, prompt_logprobs=scores))
        assert pending.requests["a1"].remainder.scores_given == 3 * round_


def test_one_that_left_counts_as_inside_until_the_engine_has_forgotten_it() -> None:
    pending = filled("a1", "a2")
    sent(pending)
    pending.engine_died()
    sent(pending)
    assert pending.leave(pending.requests["a1"])
    assert sent(pending) == []
    assert pending.engine_died() is None  # of a1, whom nobody waits for
    assert sent(pending) == ["a2"]


def test_one_that_leaves_while_it_waits_needs_no_abort() -> None:
    pending = filled("a1", "a2", room=1)
    sent(pending)
    assert not pending.leave(pending.requests["a2"])
    assert pending.leave(pending.requests["a1"])


@given(st.data())
def test_one_poison_costs_two_deaths_and_no_neighbour(data: st.DataObject) -> None:
    """An engine that dies in the step that would give the poison its n-th token, always."""
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
    pending = filled(*[f"{key}{number}" for number, key in enumerate(names)], room=4)
    requests = dict(pending.requests)
    lengths = {name: data.draw(st.integers(1, 5)) for name in requests}
    poison = data.draw(st.sampled_from(sorted(requests)))
    fatal = data.draw(st.integers(0, lengths[poison] - 1))
    deaths, culprits = 0, []
    while pending.requests:
        sent(pending)
        running = [*pending.inside.values()]
        assert running
        if any(r.id == poison and len(r.given) == fatal for r in running):
            deaths += 1
            culprits += [c.id for c in [pending.engine_died()] if c is not None]
            continue
        for request in running:
            count = len(request.given)
            if pending.take(token(request.id, count, end=count + 1 == lengths[request.id])):
                pending.forgotten(request.id)
    assert (deaths, culprits) == (2, [poison])
    for name, request in requests.items():
        if name != poison:
            assert texts(request) == [*range(lengths[name])]
