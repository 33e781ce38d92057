"""The soak: what it sends, what it takes for a leak, and that a sound server passes it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from scipy import stats
from text_target import save_text_target

from benchmarks import soak
from benchmarks.mixture import CHAT, RESPONSES, Material, Request, requests, verdict
from benchmarks.own_server import own_server
from benchmarks.readings import Reading, are_free, complaints
from benchmarks.vitals import SPARE_THREADS, Growth, Holding, growth, holdings

OWN = str(os.getpid())
OF = Material("m", 256, ["hello", "world"], [5, 6, 7], 8)
HELD = {
    "http": Holding(memory_mb=50.0, threads=5, files=17),
    "engine": Holding(memory_mb=400.0, threads=3, files=5),
}
IDLE = Reading(seconds=0.0, processes=HELD, tasks=7, running=0, waiting=0, restarts=0, outcomes={})


def test_requests_come_again_with_the_seed_and_are_of_every_kind() -> None:
    first = list(islice(requests(OF, 3), 600))
    assert first == list(islice(requests(OF, 3), 600))
    assert first != list(islice(requests(OF, 4), 600))
    kinds = {request.kind for request in first}
    assert kinds >= {"stream", "tools", "schema", "choices", "logprobs", "predicted", "long"}
    assert {request.status for request in first if request.kind == "broken"} == {400}
    assert 20 < sum(request.patience is not None for request in first) < 120


CHUNK = 'data: {"choices": []}\n\n'
ERROR = 'data: {"error": {"message": "it broke"}}\n\n'


@pytest.mark.parametrize(
    ("path", "status", "text", "expected"),
    [
        (CHAT, 200, '{"id": "x"}', "completed"),
        (CHAT, 200, '{"id": "x', 'kind: {"id": "x'),
        (CHAT, 429, "", "refused"),
        (CHAT, 400, '{"error": {"code": "bad"}}', "kind: status 400 bad"),
        (CHAT, 500, "oops", "kind: status 500"),
        (CHAT, 200, CHUNK + "data: [DONE]\n\n", "completed"),
        (CHAT, 200, ": ping\n\n" + CHUNK + "data: [DONE]\n\n", "completed"),
        (CHAT, 200, CHUNK, f"kind: {CHUNK}"),
        (CHAT, 200, CHUNK + ERROR + "data: [DONE]\n\n", f"kind: {CHUNK}{ERROR}data: [DONE]\n\n"),
        (RESPONSES, 200, "event: response.incomplete\ndata: {}\n\n", "completed"),
        (RESPONSES, 200, "event: response.failed\ndata: {}\n\n", "kind: event: response.failed"),
    ],
)
def test_an_answer_is_whole_or_says_what_is_wrong(
    path: str, status: int, text: str, expected: str
) -> None:
    found = verdict(Request("kind", path, {}), httpx.Response(status, text=text))
    assert found.startswith(expected)


def test_a_broken_request_must_be_refused_as_such() -> None:
    broken = Request("broken", CHAT, {}, 400)
    assert verdict(broken, httpx.Response(400, text='{"error": {}}')) == "completed"
    assert verdict(broken, httpx.Response(200, text="{}")) == "broken: status 200"


def test_growth_is_least_squares_with_students_interval() -> None:
    hours = [minute / 60 for minute in range(12)]
    noise = [0.3, -0.1, 0.2, 0.0, -0.4, 0.1, 0.3, -0.2, 0.0, 0.1, -0.3, 0.2]
    megabytes = [500 + 6 * hour + own for hour, own in zip(hours, noise, strict=True)]
    found = growth(hours, megabytes)
    line = stats.linregress(hours, megabytes)
    half = line.stderr * stats.t.ppf(0.975, len(hours) - 2)
    assert found is not None
    assert found.slope == pytest.approx(line.slope)
    assert found.low == pytest.approx(line.slope - half, rel=1e-2)
    assert found.high == pytest.approx(line.slope + half, rel=1e-2)
    assert growth(hours[:3], megabytes[:3]) is None


def changed(**fields: Any) -> Reading:
    return msgspec.structs.replace(IDLE, **fields)


def with_http(**fields: Any) -> Reading:
    return changed(processes=HELD | {"http": msgspec.structs.replace(HELD["http"], **fields)})


@pytest.mark.parametrize(
    ("after", "complaint"),
    [
        (with_http(files=18), "http: 18 open files, 17 before"),
        (with_http(threads=6 + SPARE_THREADS), "threads, 5 before"),
        (changed(processes=HELD | {"new": HELD["http"]}), "a process came: new"),
        (changed(running=1), "1 requests run"),
        (changed(waiting=2), "2 wait"),
        (changed(tasks=8), "8 tasks of the event loop, 7 before"),
        (changed(restarts=1), "restarted 1 times"),
    ],
)
def test_what_is_left_behind_is_a_leak(after: Reading, complaint: str) -> None:
    (found,) = complaints(IDLE, after)
    assert complaint in found


def test_holding_less_or_as_much_is_none() -> None:
    assert complaints(IDLE, IDLE) == []
    assert complaints(IDLE, with_http(files=3, threads=1, memory_mb=999.0)) == []
    assert complaints(changed(tasks=None), IDLE) == []


def test_memory_must_surely_grow_to_be_a_leak() -> None:
    settings = soak.Soak(
        url="http://x",
        pid=os.getpid(),
        minutes=20.0,
        every=60.0,
        calibrate=1.0,
        clients=1,
        share=0.8,
        warm_up=0.5,
        max_tokens=1,
        most_mb_per_hour=1.0,
        seed=0,
    )
    steep = [
        changed(
            seconds=60.0 * minute,
            processes={"http": msgspec.structs.replace(HELD["http"], memory_mb=50.0 + minute)},
        )
        for minute in range(20)
    ]
    found = soak.memory_growth(steep, settings)
    assert found is not None
    assert found.slope == pytest.approx(60.0)
    assert soak.growth_complaints(found, settings) == [
        "memory grows by 60.0 MB/h, at least by 60.0"
    ]
    assert soak.growth_complaints(Growth(slope=3.0, low=0.5, high=5.5), settings) == []


@pytest.mark.parametrize(("running", "is_free"), [(3, True), (2, False)])
async def test_a_slot_that_is_not_free_is_found(
    running: int, is_free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three requests where so many can run at once, and none ends."""
    if not is_free:  # else all begin, however long it takes
        monkeypatch.setattr("benchmarks.readings.PATIENCE", 0.2)
    gate, begun = asyncio.Semaphore(running), []

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=stream())

    async def stream() -> AsyncIterator[bytes]:
        await gate.acquire()
        begun.append(1)
        yield b"data: {}\n\n"
        await asyncio.sleep(600)

    async with httpx.AsyncClient(
        base_url="http://x", transport=httpx.MockTransport(answer)
    ) as http:
        assert await are_free(http, "m", 3, 9) is is_free
    assert len(begun) == 3 if is_free else len(begun) <= running


def test_holdings_are_those_of_a_process_and_those_below_it() -> None:
    own = holdings(os.getpid())["http"]
    assert own.memory_mb > 1
    assert own.threads >= 1
    assert own.files >= 3
    assert holdings(999999999) == {}


def test_a_sound_server_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save_text_target(tmp_path / "target", context=2048)
    options = ("--threads", "1", "--dtype", "float32", "--max-num-seqs", "4", str(target))
    with own_server(*options) as (address, pid):
        words = ["--url", address, "--pid", str(pid), "--max-tokens", "8", "--clients", "4"]
        words += ["--minutes", "0.1", "--every", "0.5", "--calibrate", "1"]
        status = soak.main([*words, "--most-mb-per-hour", "1e9"])
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])["soak"]
    assert (status, found["broken"]) == (0, [])
    assert set(found["readings"][0]["processes"]) == {"http", "engine", "template"}
    last = found["readings"][-1]
    assert last["outcomes"].get("completed", 0) + last["outcomes"].get("left", 0) > 0
    assert last["tasks"] is not None
    assert "failed" not in last["outcomes"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--url", "http://127.0.0.1:9"], "--url and --pid belong together"),
        (["--url", "127.0.0.1", "--pid", OWN], "must begin with http:// or https://"),
        (["--url", "http://127.0.0.1:9", "--pid", "999999999"], "there is no such process"),
        (["--url", "http://127.0.0.1:9", "--pid", OWN], "is no server to talk to"),
        (["--url", "http://x", "--pid", OWN, "--minutes", "0"], "must be above 0"),
        (["--url", "http://x", "--pid", OWN, "--clients", "0"], "must be at least 1"),
        (["--url", "http://x", "--pid", OWN, "--warm-up", "1"], "must be from 0 to below 1"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.main(words) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
