"""The engine process dies, hangs and stops: its requests do not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.client import EngineClient, EngineDied, Incident, RequestQuarantined
from engine.config import EngineConfig
from engine.messages import SamplingParams, Submit
from tests.server_harness import PATIENCE, build_model_folder, worker_command
from tests.test_engine_client import order

STREAMS = 20
FAULTY_WORKER = Path(__file__).with_name("faulty_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What a replaced engine waits for, if told to, before it is ready."""
    return tmp_path / "gate"


class Watched:
    """A client, what befell its engine, and what its requests were given."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.incidents: list[Incident] = []
        self.given: dict[str, list[int]] = {}
        client.incident_observers.append(self.incidents.append)

    async def run(self, submit: Submit) -> list[int]:
        """The request's tokens, once it ended in order."""
        given = self.given[submit.request_id] = []
        async for output in self.client.generate(submit):
            given += output.token_ids
        assert output.finish_reason in ("stop", "length")
        return given

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.client.pid is not None
        os.kill(self.client.pid, number)

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not is_true():
                await asyncio.sleep(0.01)

    async def all_have(self, tokens: int) -> None:
        await self.until(lambda: all(len(given) >= tokens for given in self.given.values()))


@asynccontextmanager
async def watched(
    folder: Path, *options: str, timeout: float = PATIENCE, slots: int = STREAMS
) -> AsyncIterator[Watched]:
    config = EngineConfig(model=str(folder), max_num_seqs=slots)
    client = EngineClient(config, worker_command(*options), timeout)
    await client.start()
    try:
        yield Watched(client)
    finally:
        await client.stop()


def long_answers(folder: Path) -> list[Submit]:
    """Answers that differ, of 100 tokens; a step of all takes some 20 ms."""
    orders = {"forever": 1, "step": 1, "delay": 0.001}
    return [order(folder, f"r{i}", say=f"{i} over the hills", **orders) for i in range(STREAMS)]


@pytest.mark.parametrize("kills", [1, 3])
async def test_streams_get_the_very_tokens_they_would_have_had(folder: Path, kills: int) -> None:
    submits = long_answers(folder)
    async with watched(folder) as engine:
        expected = await asyncio.gather(*map(engine.run, submits))
        engine.given.clear()
        running = asyncio.gather(*map(engine.run, submits))
        for kill in range(kills):
            await asyncio.sleep(0)
            await engine.all_have(5 * (kill + 1))
            engine.kill()
        async with asyncio.timeout(PATIENCE):
            assert await running == expected
    assert all(len(ids) == 100 for ids in expected)
    assert engine.incidents.count("restart") == kills
    assert engine.incidents.count("replay") == kills * STREAMS
    assert "quarantine" not in engine.incidents


@pytest.mark.parametrize("is_busy", [True, False])
async def test_a_stopped_engine_is_found_and_replaced(folder: Path, is_busy: bool) -> None:
    async with watched(folder, timeout=3.0) as engine:
        answer = order(folder, say="hello", forever=1, step=1, delay=0.001)
        if is_busy:
            running = asyncio.create_task(engine.run(answer))
            await engine.until(lambda: len(engine.given.get("a", [])) >= 5)
        engine.kill(signal.SIGSTOP)
        await engine.until(lambda: "restart" in engine.incidents)
        async with asyncio.timeout(PATIENCE):
            assert len(await (running if is_busy else engine.run(answer))) == 100


async def test_a_request_that_hangs_the_engine_is_quarantined(folder: Path) -> None:
    async with watched(folder, timeout=3.0) as engine:
        with pytest.raises(RequestQuarantined):
            await engine.run(order(folder, say="hello over the hills", step=1, hang_at=2))
        assert engine.given["a"]
        assert engine.incidents.count("restart") == 2


async def test_an_idle_engine_is_left_alone(folder: Path, log: Path) -> None:
    async with watched(folder, "--log", str(log), timeout=2.0) as engine:
        pid = engine.client.pid
        await engine.until(lambda: log.read_text().count("Ping") >= 15)
        assert engine.client.pid == pid
        assert engine.incidents == []


async def test_a_slow_load_is_not_a_hang(folder: Path) -> None:
    """Nothing is said while the models load: only a process that was ready must answer."""
    async with watched(folder, timeout=0.01) as engine:
        assert engine.client.status == "ok"


@pytest.mark.parametrize("fatal", [0, 7])
async def test_a_poisonous_request_is_quarantined_and_its_neighbours_finish(
    folder: Path, fatal: int
) -> None:
    submits = long_answers(folder)
    submits[4] = order(folder, "r4", say="4", forever=1, step=1, delay=0.001, die_at=fatal)
    async with watched(folder) as engine:
        runs = asyncio.gather(*map(engine.run, submits), return_exceptions=True)
        async with asyncio.timeout(PATIENCE):
            results = await runs
    assert isinstance(results.pop(4), RequestQuarantined)
    assert all(isinstance(ids, list) and len(ids) == 100 for ids in results)
    assert engine.incidents.count("restart") == 2
    assert engine.incidents.count("quarantine") == 1


async def test_requests_that_come_during_a_restart_wait_for_it(
    folder: Path, log: Path, gate: Path
) -> None:
    async with watched(folder, "--log", str(log), "--gate", str(gate)) as engine:
        engine.kill()
        await engine.until(lambda: engine.client.status == "restarting")
        assert engine.client.is_alive
        running = asyncio.create_task(engine.run(order(folder, say="hello")))
        await engine.until(lambda: "a" in engine.given)
        gate.touch()
        assert await running
        assert engine.client.status == "ok"


async def test_an_engine_that_keeps_dying_is_given_up_with_a_reason(
    folder: Path, log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.supervisor.BACKOFF_SECONDS", 0.001)
    async with watched(folder, "--lives", "1", "--log", str(log)) as engine:
        running = asyncio.gather(*map(engine.run, long_answers(folder)), return_exceptions=True)
        await engine.until(lambda: len(engine.given) == STREAMS)
        await engine.all_have(1)
        engine.kill()
        async with asyncio.timeout(PATIENCE):
            results = await running
        assert all(isinstance(result, EngineDied) for result in results)
        assert engine.client.status == "given up"
        with pytest.raises(EngineDied):
            engine.client.check_room()
    assert "given up: it died 5 times in a row" in caplog.text
    assert "exited with status 3" in caplog.text
    assert log.read_text().count("Start") == 5


async def test_deaths_between_which_requests_finish_are_not_in_a_row(folder: Path) -> None:
    async with watched(folder) as engine:
        for deaths in range(1, 8):
            engine.kill()
            await engine.until(lambda: engine.incidents.count("restart") == deaths)  # noqa: B023  # it is awaited here
            assert await engine.run(order(folder, say="hello"))


async def test_a_client_that_leaves_while_the_engine_is_away_leaves_nothing(
    folder: Path, log: Path, gate: Path
) -> None:
    async with watched(folder, "--log", str(log), "--gate", str(gate)) as engine:
        running = asyncio.gather(*map(engine.run, long_answers(folder)))
        await engine.until(lambda: len(engine.given) == STREAMS)
        await engine.all_have(1)
        engine.kill()
        await engine.until(lambda: engine.client.status == "restarting")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        gate.touch()
        assert await engine.run(order(folder, say="hello"))
        assert not engine.client._pending.requests
        assert not engine.client._pending.inside


async def test_a_command_that_cannot_be_run_is_an_error(folder: Path) -> None:
    client = EngineClient(EngineConfig(model=str(folder)), ["/no/such/command"])
    with pytest.raises(EngineDied, match="could not be started"):
        await client.start()
    await client.stop()


@pytest.mark.slow
async def test_a_real_engine_continues_every_sampled_answer_exactly(
    tiny_llama: Path, tmp_path: Path
) -> None:
    seeds = range(6)
    submits = [Submit(f"r{i}", [1, 2, 3 + i], 40, SamplingParams(seed=i), []) for i in seeds]
    config = EngineConfig(model=str(tiny_llama), dtype="float32", device="cpu", threads=1)
    fault = tmp_path / "fault"
    client = EngineClient(config, [sys.executable, str(FAULTY_WORKER), str(fault)], timeout=5.0)
    await client.start()
    engine = Watched(client)
    try:
        expected = await asyncio.gather(*map(engine.run, submits))
        for kind in ("kill", "raise", "hang"):
            engine.given.clear()
            running = asyncio.gather(*map(engine.run, submits))
            await engine.until(lambda: len(engine.given.get("r2", [])) >= 5)
            if kind == "kill":
                engine.kill()
            else:
                fault.write_text(kind)
            async with asyncio.timeout(PATIENCE):
                assert await running == expected
    finally:
        await client.stop()
    assert engine.incidents.count("restart") >= 3
    assert "quarantine" not in engine.incidents
