"""The serving benchmark: what a stream is taken for, figures on answers made by hand, the command.

The small server here ends its streams in every wrong way; the command talks to the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_harness import build_model_folder, running_server

from benchmarks import serving
from benchmarks.chat_client import Answer, Reading, Usage, ask
from benchmarks.machine import resident_mb
from benchmarks.traffic import Run, arrivals, closed_loop, figures, open_loop, tokens_between


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}], "usage": None})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})
DONE = b"data: [DONE]\n\n"
ERROR = event({"error": {"message": "it broke", "type": "server_error", "code": None}})
STREAMS = {
    "fine": piece("ab") + b": ping\n\n" + piece("cde") + USAGE + DONE,
    "broken": piece("ab") + ERROR + DONE,
    "short": piece("ab"),
    "garbled": piece("ab") + b"data: {oops\n\n" + DONE,
    "unaccounted": piece("ab") + DONE,
}


def test_a_stream_may_be_cut_anywhere() -> None:
    reading = Reading()
    for place in range(len(STREAMS["fine"])):
        reading.push(STREAMS["fine"][place : place + 1], float(place))
    assert [characters for _, characters in reading.pieces] == [2, 3]
    assert reading.usage == Usage(completion_tokens=7, prompt_tokens=5)
    assert reading.verdict() == ""


class SmallServer:
    """Answers by the prompt's text: a stream from above, a status, or a cut connection."""

    def __init__(self) -> None:
        self.open = self.most_open = self.served = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        text = json.loads(await reader.readexactly(length))["messages"][0]["content"]
        self.served += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        await asyncio.sleep(0)
        self.open -= 1
        writer.write(self.reply(text))
        await writer.drain()
        writer.close()

    def reply(self, text: str) -> bytes:
        if text.isdecimal():
            body = b'{"error": {"code": "queue_full"}}'
            return (
                b"HTTP/1.1 %s No\r\ncontent-length: %d\r\n\r\n" % (text.encode(), len(body)) + body
            )
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        stream = STREAMS.get(text, piece("ab"))
        chunk = b"%x\r\n%s\r\n" % (len(stream), stream)
        return head + chunk + (b"" if text == "cut" else b"0\r\n\r\n")


@pytest.fixture
def small_server() -> SmallServer:
    return SmallServer()


@pytest.fixture
async def http(small_server: SmallServer) -> AsyncIterator[httpx.AsyncClient]:
    server = await asyncio.start_server(small_server.handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        yield client


def body(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("text", "outcome", "detail"),
    [
        ("fine", "completed", ""),
        ("429", "refused", "status 429 queue_full"),
        ("503", "refused", "status 503 queue_full"),
        ("500", "failed", "status 500 queue_full"),
        ("broken", "failed", "error event server_error"),
        ("short", "failed", "ended without [DONE]"),
        ("garbled", "failed", "an event that is no chunk"),
        ("unaccounted", "failed", "no usage"),
        ("cut", "failed", "RemoteProtocolError"),
    ],
)
async def test_an_answer_tells_how_it_ended(
    text: str, outcome: str, detail: str, http: httpx.AsyncClient
) -> None:
    answer = await ask(http, body(text))
    assert (answer.outcome, answer.detail) == (outcome, detail)
    assert answer.tokens == (7 if outcome == "completed" else 0)
    assert answer.start <= answer.end


async def test_a_server_that_is_not_there_is_a_failure() -> None:
    async with httpx.AsyncClient(base_url=nobody(), trust_env=False) as http:
        answer = await ask(http, body("fine"))
    assert (answer.outcome, answer.detail) == ("failed", "ConnectError")


async def test_a_closed_loop_has_no_more_than_its_level_open(
    http: httpx.AsyncClient, small_server: SmallServer
) -> None:
    run = await closed_loop(http, [body("fine"), body("429")], level=3, count=9)
    assert small_server.served == len(run.answers) == 9
    assert small_server.most_open <= 3
    assert run.start <= run.end <= max(answer.end for answer in run.answers) + 1
    assert (figures(run).completed, figures(run).refused) == (5, 4)


async def test_an_open_loop_sends_what_is_due(
    http: httpx.AsyncClient, small_server: SmallServer
) -> None:
    run = await open_loop(http, [body("fine"), body("cut")], rate=200, seconds=0.1, seed=3)
    assert small_server.served == len(run.answers) == len(list(arrivals(200, 0.1, 3))) > 0
    assert run.end - run.start == pytest.approx(0.1)
    assert figures(run).failures == {"RemoteProtocolError": len(run.answers) // 2}


def test_arrivals_come_at_the_rate_and_again_with_the_seed() -> None:
    times = list(arrivals(10.0, 500.0, seed=1))
    assert times == list(arrivals(10.0, 500.0, seed=1))
    assert len(times) == pytest.approx(5000, rel=0.1)
    assert all(then > now for now, then in pairwise(times))
    assert times[-1] < 500.0


def completed(start: float, tokens: int, *pieces: tuple[float, int]) -> Answer:
    usage = Usage(completion_tokens=tokens, prompt_tokens=10)
    return Answer("completed", start, pieces[-1][0], "", pieces, usage)


def test_the_figures_are_those_of_the_answers() -> None:
    run = Run(
        start=100.0,
        end=110.0,
        answers=[
            completed(100.0, 20, (101.0, 5), (101.5, 5)),
            completed(100.0, 40, (103.0, 10), (120.0, 30)),
            Answer("refused", 101.0, 101.02, "status 429"),
            Answer("refused", 101.0, 101.04, "status 503"),
            Answer("failed", 101.0, 105.0, "ReadTimeout", ((102.0, 99),)),
        ],
        delays=[0.001, 0.003],
    )
    found = figures(run)
    assert (found.requests, found.completed, found.refused, found.failed) == (5, 2, 2, 1)
    assert found.failures == {"ReadTimeout": 1}
    assert found.tokens_per_second == pytest.approx((20 + 40 / 4) / 10)
    assert found.requests_per_second == pytest.approx(3.0 / 30)
    assert found.first_token_ms is not None
    assert found.first_token_ms.p50 == pytest.approx(2000)
    assert found.gap_ms is not None
    assert found.gap_ms.max == pytest.approx(17000)
    assert found.refusal_ms is not None
    assert found.refusal_ms.p50 == pytest.approx(30)
    assert found.refusal_ms.p99 == pytest.approx(39.8)
    assert found.client_delay_ms is not None
    assert found.client_delay_ms.max == pytest.approx(3)
    assert found.cached is None


def test_nothing_completed_gives_no_spreads_and_no_speed() -> None:
    found = figures(Run(0.0, 1.0, [Answer("failed", 0.0, 1.0, "ConnectError")]))
    assert (found.tokens_per_second, found.requests_per_second) == (0.0, 0.0)
    assert (found.first_token_ms, found.gap_ms, found.refusal_ms) == (None, None, None)


def test_an_answer_without_text_counts_where_it_ended() -> None:
    answer = Answer("completed", 0.0, 5.0, usage=Usage(completion_tokens=1))
    assert tokens_between(answer, 0.0, 6.0) == 1
    assert tokens_between(answer, 0.0, 4.0) == 0


def test_a_slow_client_is_told() -> None:
    slow = figures(Run(0.0, 1.0, [], delays=[0.0, 0.055]))
    [note] = serving.notes([serving.Phase(rate=3.0, figures=slow)])
    assert "open 3/s: this client itself was up to 55 ms late" in note
    fast = figures(Run(0.0, 1.0, [], delays=[0.0, 0.015]))
    assert serving.notes([serving.Phase(level=1, figures=fast)]) == []


def test_the_last_line_is_one_document_with_every_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in ("hello", "falcon")))
    loops = ["--levels", "1,2", "--overload", "2", "--rate", "20", "--seconds", "0.2"]
    with running_server(build_model_folder(tmp_path / "model")) as server:
        words = ["--url", server.url, "--prompts", str(prompts), "--max-tokens", "8", *loops]
        assert serving.main([*words, "--pid", str(os.getpid())]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert "closed 2" in printed
    assert found["settings"]["model"] == "tiny"
    one, two, steady, overload = found["phases"]
    assert (one["level"], two["level"], steady["rate"]) == (1, 2, 20.0)
    peak = max(one["figures"], two["figures"], key=lambda own: own["tokens_per_second"])
    assert overload["rate"] == pytest.approx(2 * peak["requests_per_second"], rel=1e-3)
    assert (one["figures"]["completed"], two["figures"]["completed"]) == (4, 8)
    assert one["figures"]["tokens_per_second"] > 0
    assert one["memory_after_mb"] > 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--url", "127.0.0.1:8000"], "must begin with http:// or https://"),
        (["--levels", "none"], "--levels 'none': expected whole numbers"),
        (["--rate", "0"], "--rate '0': expected numbers above 0"),
        (["--overload", "3,nan"], "--overload '3,nan': expected"),
        (["--seconds", "0"], "--seconds must be above 0, not 0.0"),
        (["--levels", "4", "--requests", "2"], "--requests 2 must be 0 or at least 4"),
        (["--max-tokens", "0"], "--max-tokens must be at least 1, not 0"),
        (["--pid", "999999999"], "there is no such process"),
        ([], "lists no model to talk to"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serving.main(["--url", nobody(), *words]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.startswith("serving: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_memory_is_that_of_a_process_and_those_below_it() -> None:
    assert resident_mb(os.getpid()) > 1
    assert resident_mb(999999999) == 0.0


def nobody() -> str:
    """A URL at which no server listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
