"""The engine process seen from the HTTP process: framing, life, death, aborts."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.client import EngineClient, EngineDied, EngineRefused
from engine.config import EngineConfig
from engine.messages import (
    Abort,
    Ping,
    Ready,
    RequestOutput,
    SamplingParams,
    Shutdown,
    StepReport,
    Submit,
    ToEngine,
)
from engine.wire import (
    MAX_FRAME_BYTES,
    BadFrame,
    Connection,
    encode_frame,
    from_engine_decoder,
    to_engine_decoder,
)
from tests.server_harness import build_model_folder, worker_command

MESSAGES: list[ToEngine] = [
    EngineConfig(model="m"),
    Submit("a", [1, 2, 3], 5, SamplingParams(seed=2**64 - 1), [0]),
    Abort("a"),
    Ping(),
    Shutdown(),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection[ToEngine]]]:
    ours, theirs = socket.socketpair()
    connection = Connection(theirs, to_engine_decoder())
    yield ours, connection
    ours.close()
    connection.close()


def order(folder: Path, request_id: str = "a", **orders: object) -> Submit:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(f"<|user|>{json.dumps(orders)}<|end|><|assistant|>").ids
    return Submit(request_id, ids, 100, SamplingParams(), [1])


async def last_of(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    return [output async for output in outputs][-1]


@given(st.lists(st.integers(1, 40), max_size=20))
def test_messages_survive_any_split_of_the_byte_stream(cuts: list[int]) -> None:
    data = b"".join(encode_frame(message) for message in MESSAGES)
    frames = to_engine_decoder()
    received: list[ToEngine] = []
    for cut in [*cuts, len(data)]:
        received += frames.feed(data[:cut])
        data = data[cut:]
    assert received == MESSAGES


@pytest.mark.parametrize(
    "data", [(MAX_FRAME_BYTES + 1).to_bytes(4, "big"), b"\0\0\0\1\xc1", b"\0\0\0\2\x93\1"]
)
def test_a_frame_too_long_or_broken_is_refused(data: bytes) -> None:
    with pytest.raises(BadFrame):
        from_engine_decoder().feed(data)


def test_connection_returns_all_messages_that_are_there(
    pair: tuple[socket.socket, Connection[ToEngine]],
) -> None:
    ours, connection = pair
    assert connection.receive(block=False) == []
    ours.sendall(encode_frame(MESSAGES[0]) + encode_frame(MESSAGES[1]) + b"\0\0")
    assert connection.receive(block=True) == MESSAGES[:2]
    assert connection.receive(block=False) == []


def test_connection_raises_eof_after_the_last_message(
    pair: tuple[socket.socket, Connection[ToEngine]],
) -> None:
    ours, connection = pair
    ours.sendall(encode_frame(Shutdown()))
    ours.close()
    assert connection.receive(block=True) == [Shutdown()]
    for block in (True, False):
        with pytest.raises(EOFError):
            connection.receive(block=block)
    with pytest.raises(EOFError):
        connection.send(Ready("t", None, "p", "d", "cpu", 8, 1))


async def test_requests_run_side_by_side_and_observers_see_every_step(folder: Path) -> None:
    client = EngineClient(EngineConfig(model=str(folder)), worker_command())
    reports: list[StepReport] = []
    client.observers.append(reports.append)
    ready = await client.start()
    assert ready.context_length == 256
    assert client.is_alive
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    async def text(request_id: str, say: str) -> str:
        outputs = [o async for o in client.generate(order(folder, request_id, say=say))]
        assert [o.finish_reason for o in outputs[:-1]] == [None] * (len(outputs) - 1)
        return tokenizer.decode([i for o in outputs for i in o.token_ids])

    assert [*await asyncio.gather(text("a", "one"), text("b", "two"))] == ["one", "two"]
    assert reports
    await client.stop()
    assert not client.is_alive


async def test_closing_the_iterator_aborts_the_request(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    client = EngineClient(EngineConfig(model=str(folder)), worker_command("--log", str(log)))
    await client.start()
    async with aclosing(client.generate(order(folder, say="hello", forever=1))) as outputs:
        async for _ in outputs:
            break
    assert [o async for o in client.generate(order(folder, "b", say="x"))]
    await client.stop()
    _, _, *received = log.read_text().split()
    assert received == ["Submit", "Abort", "Submit", "Shutdown"]


async def test_open_requests_end_with_engine_died_when_the_engine_is_stopped(folder: Path) -> None:
    client = EngineClient(EngineConfig(model=str(folder)), worker_command())
    await client.start()
    outputs = client.generate(order(folder, say="hello world", forever=1, delay=0.01))
    assert (await anext(outputs)).token_ids
    await client.stop()
    with pytest.raises(EngineDied):
        await last_of(outputs)
    assert not client.is_alive
    with pytest.raises(EngineDied):
        await anext(client.generate(order(folder, "b", say="x")))


async def test_an_observer_that_fails_stops_nothing(folder: Path) -> None:
    client = EngineClient(EngineConfig(model=str(folder)), worker_command())
    client.observers.append(lambda report: [].pop())
    await client.start()
    assert (await last_of(client.generate(order(folder, say="x")))).finish_reason == "stop"
    await client.stop()


async def test_a_refusal_carries_the_reason(folder: Path) -> None:
    client = EngineClient(EngineConfig(model=str(folder)), worker_command("--refuse", "no bf16"))
    with pytest.raises(EngineRefused, match="no bf16"):
        await client.start()
    await client.stop()


async def test_a_worker_that_dies_before_ready_is_an_error(folder: Path, tmp_path: Path) -> None:
    command = worker_command("--lives", "0", "--log", str(tmp_path / "log"))
    client = EngineClient(EngineConfig(model=str(folder)), command)
    with pytest.raises(EngineDied, match="before it was ready"):
        await client.start()
    await client.stop()


async def test_a_worker_that_does_not_leave_is_killed(folder: Path) -> None:
    client = EngineClient(EngineConfig(model=str(folder)), worker_command("--hang"))
    await client.start()
    pid = client.pid
    await client.stop(0.1)
    assert client.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)
