"""`stream_interval` and usage in every chunk: the same events whatever a step accepted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server_harness import Running, build_model_folder, running_server

SAY = "hello world, 漢é flies STOP over"
USAGE = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_server(build_model_folder(tmp_path_factory.mktemp("model"))) as running:
        yield running


def chunks(server: Running, step: int, **fields: Any) -> list[dict[str, Any]]:
    """All chunks, without what tells two answers to one request apart."""
    order = {"say": SAY, "step": step}
    *found, done = server.events(server.chat(order, stream_options=USAGE, **fields))
    assert done == "[DONE]"
    return [{key: chunk[key] for key in ("choices", "usage")} for chunk in found]


def texts(found: list[dict[str, Any]]) -> list[str]:
    deltas = [choice["delta"] for chunk in found for choice in chunk["choices"]]
    return [delta["content"] for delta in deltas[1:] if "content" in delta]


def counts(found: list[dict[str, Any]]) -> list[int]:
    """Completion tokens so far, as told beside each text."""
    return [
        chunk["usage"]["completion_tokens"]
        for chunk in found
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content")
    ]


@pytest.mark.parametrize("fields", [{}, {"stop": "STOP"}, {"max_tokens": 12}])
@pytest.mark.parametrize("interval", [1, 4, 1024])
def test_events_do_not_depend_on_steps(
    server: Running, interval: int, fields: dict[str, Any]
) -> None:
    one, some, all_ = (
        chunks(server, step, stream_interval=interval, **fields) for step in (1, 3, 500)
    )
    assert strip_prompt(one) == strip_prompt(some) == strip_prompt(all_)


def strip_prompt(found: list[dict[str, Any]]) -> list[Any]:
    """The order to the worker, and so the prompt, differs by a digit or two."""
    return [
        (chunk["choices"], chunk["usage"] and chunk["usage"]["completion_tokens"])
        for chunk in found
    ]


def test_every_token_has_its_event_and_half_characters_wait(server: Running) -> None:
    found = chunks(server, 500, stream_interval=1)
    assert "".join(texts(found)) == SAY
    assert "漢" in texts(found)
    total = found[-1]["usage"]["completion_tokens"]
    halves = 2 + 1  # bytes of 漢 and é before their last
    assert len(texts(found)) == total - 1 - halves  # the end token has no text
    assert counts(found) == sorted(set(counts(found)))


def test_the_first_token_has_an_event_and_then_every_fourth(server: Running) -> None:
    found = chunks(server, 500, stream_interval=4)
    assert counts(found)[:4] == [1, 5, 9, 13]
    assert "".join(texts(found)) == SAY


def test_by_default_every_step_has_its_event(server: Running) -> None:
    assert len(texts(chunks(server, 500))) == 1
    found = chunks(server, 5)
    assert len(texts(found)) == -(-found[-1]["usage"]["completion_tokens"] // 5)


def test_usage_is_told_with_every_text_and_the_last_time_whole(server: Running) -> None:
    found = chunks(server, 3)
    assert found[0]["usage"] is None
    told = [chunk["usage"] for chunk in found[1:]]
    assert told[-1] == told[-2]
    assert all(usage["prompt_tokens"] == told[-1]["prompt_tokens"] for usage in told)
    assert [u["completion_tokens"] for u in told] == sorted(u["completion_tokens"] for u in told)
