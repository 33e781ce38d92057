"""Turns of a conversation have one key, and a key one replica, as long as that is not too busy."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from server.affinity import conversation_key, ranked

NAMES = [f"replica{number}" for number in range(4)]
KEYS = [f"key{number}" for number in range(400)]
SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hello!"}
LATER = [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And now?"}]


def key(**fields: Any) -> str | None:
    return conversation_key(json.dumps({"model": "m", **fields}).encode())


def homes(names: list[str]) -> dict[str, str]:
    return {key: ranked(key, dict.fromkeys(names, 0), 8)[0] for key in KEYS}


def test_later_turns_have_the_key_of_the_first() -> None:
    first = key(messages=[SYSTEM, USER], temperature=0)
    assert first is not None
    assert key(messages=[SYSTEM, USER, *LATER], stream=True) == first


def test_a_conversation_has_one_key_in_all_its_spellings() -> None:
    in_parts = [SYSTEM, USER | {"content": [{"type": "text", "text": "Hello!"}]}]
    as_items = [{"type": "message", **USER}, *LATER]
    assert key(messages=in_parts) == key(messages=[SYSTEM, USER])
    assert key(instructions="Be kind.", input="Hello!") == key(messages=[SYSTEM, USER])
    assert key(instructions="Be kind.", input=as_items) == key(messages=[SYSTEM, USER])


@pytest.mark.parametrize(
    "other", [[USER], [SYSTEM, USER | {"content": "Hello?"}], [SYSTEM | {"content": ""}, USER]]
)
def test_other_conversations_have_other_keys(other: list[dict[str, Any]]) -> None:
    assert key(messages=other) != key(messages=[SYSTEM, USER])


def test_raw_prompts_go_by_their_beginning() -> None:
    beginning = "def add(a, b):\n" * 10
    assert key(prompt=beginning) == key(prompt=[beginning + "    return a + b"])
    assert key(prompt=beginning) != key(prompt="class A:")
    ids = list(range(40))
    assert key(prompt=ids) == key(prompt=[[*ids, 7]])
    assert key(prompt=ids) != key(prompt=ids[1:])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"messages": []}',
        b'{"messages": 1}',
        b'{"messages": [1, {"role": 2}, {}]}',
        b'{"prompt": ""}',
        b'{"prompt": [[]]}',
        b'{"prompt": {"a": 1}}',
        b"[" * 100_000,
        b'{"messages":' + b"[" * 100_000,
    ],
)
def test_what_is_no_conversation_has_no_key(body: bytes) -> None:
    assert conversation_key(body) is None


def test_no_depth_of_nesting_is_an_error() -> None:
    """Deepest of all is what can just be decoded."""
    for depth in range(100, 1100):
        conversation_key(b'{"prompt":[0,' + b"[" * depth + b"]" * depth + b"]}")


def test_keys_are_spread_over_the_replicas() -> None:
    counts = Counter(homes(NAMES).values())
    assert set(counts) == set(NAMES)
    assert max(counts.values()) < 1.5 * len(KEYS) / len(NAMES)


def test_who_comes_or_goes_moves_no_other_conversation() -> None:
    before, after = homes(NAMES), homes(NAMES[:-1])
    assert all(after[key] == home for key, home in before.items() if home != NAMES[-1])


def test_a_replica_with_a_free_slot_keeps_its_conversations() -> None:
    first, *others = ranked("key", dict.fromkeys(NAMES, 0), 8)
    assert ranked("key", {first: 7} | dict.fromkeys(others, 0), 8)[0] == first


def test_a_replica_that_is_too_busy_is_passed_over_for_the_same_other() -> None:
    first, second, *others = ranked("key", dict.fromkeys(NAMES, 0), 8)
    loads = {first: 8, second: 0} | dict.fromkeys(others, 0)
    assert ranked("key", loads, 8) == [second, *others, first]


def test_where_all_are_busy_each_has_its_share() -> None:
    first, *others = ranked("key", dict.fromkeys(NAMES, 0), 8)
    assert ranked("key", {first: 44} | dict.fromkeys(others, 40), 8)[0] == first
    assert ranked("key", {first: 60} | dict.fromkeys(others, 40), 8)[-1] == first


def test_what_has_no_key_goes_to_who_has_the_least_to_do() -> None:
    assert ranked(None, {"a": 3, "b": 1, "c": 2}, 8) == ["b", "c", "a"]
    assert {ranked(None, {"a": 0, "b": 0}, 8)[0] for _ in range(100)} == {"a", "b"}
