"""Loading, serving, leaving, draining, gone: what each answers, and that no answer is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.rolling_restart import roll
from tests.server_harness import Running, build_model_folder, eventually, running_server
from tests.server_process import Served, serving

PROBES = ["/livez", "/readyz", "/health", "/ping"]
STREAMS = 20
ENDLESS = '{"say": "hello world", "step": 1, "held_until": "/no/such/file"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(folder, "--max-num-seqs", str(STREAMS)) as process:
        yield process


def refused(answer: httpx.Response, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert int(answer.headers["retry-after"]) > 0


def open_stream(stack: ExitStack, served: Served, content: str) -> Iterator[str]:
    """A stream that has begun; the rest of its text."""
    text = stack.enter_context(served.stream(content)).iter_text()
    next(text)
    return text


def states(server: Running) -> dict[str, int]:
    return {path: server.get(path).status_code for path in PROBES}


def test_the_server_listens_while_it_loads(folder: Path, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    options = ("--loads-until", str(loaded))
    with running_server(folder, *options, waits=False) as server:
        assert states(server) == {"/livez": 200, "/readyz": 503, "/health": 503, "/ping": 503}
        assert server.get("/readyz").json() == {"status": "loading"}
        assert int(server.get("/readyz").headers["retry-after"]) > 0
        refused(server.post(server.chat()), "model_loading")
        refused(server.post(server.chat(stream=True)), "model_loading")
        refused(server.get("/v1/models"), "model_loading")
        assert server.get("/metrics").status_code == 200
        loaded.touch()
        eventually(lambda: server.get("/readyz").status_code == 200)
        assert server.post(server.chat()).status_code == 200
        assert states(server) == dict.fromkeys(PROBES, 200)


def test_probes_answer_head_and_a_posted_ping(folder: Path) -> None:
    with running_server(folder) as server:
        for path in PROBES:
            answer = server.client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
        assert server.client.post("/ping").status_code == 200
        assert server.client.post("/livez").status_code == 405


def test_a_restarting_engine_is_alive_and_not_ready(folder: Path, tmp_path: Path) -> None:
    with running_server(folder, "--gate", str(tmp_path / "gate")) as server:
        kill(server)
        eventually(lambda: server.get("/readyz").status_code == 503)
        assert server.get("/readyz").json() == {"status": "engine restarting"}
        assert server.get("/livez").status_code == 200
        (tmp_path / "gate").touch()
        eventually(lambda: server.get("/readyz").status_code == 200)


def test_an_engine_that_is_given_up_is_not_alive(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.supervisor.BACKOFF_SECONDS", 0.001)
    with running_server(folder, "--lives", "1") as server:
        kill(server)
        eventually(lambda: server.get("/livez").status_code == 503)
        assert server.get("/readyz").json() == {"status": "engine given up"}


def kill(server: Running) -> None:
    os.kill(server.worker_pid(), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_streams_loses_none(
    served: Served, number: int, tmp_path: Path
) -> None:
    order = json.dumps({"say": "over the hills", "step": 1, "held_until": str(tmp_path / "go")})
    with ExitStack() as open_:
        streams = [open_stream(open_, served, order) for _ in range(STREAMS)]
        served.send_signal(number)
        eventually(lambda: served.get("/readyz").status_code == 503)
        refused(served.post("one more"), "server_draining")
        answer = served.get("/livez")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        (tmp_path / "go").touch()
        texts = ["".join(stream) for stream in streams]
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert all('"finish_reason":"stop"' in text for text in texts)
    status, out, err = served.ended()
    assert (status, err.count("Traceback")) == (0, 0), err
    assert f"{served.url}/v1" in out


def test_what_is_left_after_its_time_ends_with_an_error_event(folder: Path) -> None:
    with serving(folder, "--shutdown-timeout", "0.2") as served, ExitStack() as open_:
        text = open_stream(open_, served, ENDLESS)
        served.send_signal()
        cut = "".join(text)
        assert cut.count('"server_draining"') == 1
        assert cut.endswith("data: [DONE]\n\n")
        assert served.ended()[0] == 0


@pytest.mark.parametrize("words", [["--shutdown-timeout", "600"], ["--shutdown-delay", "600"]])
def test_a_second_signal_ends_everything_at_once(folder: Path, words: list[str]) -> None:
    with serving(folder, *words) as served, ExitStack() as open_:
        text = open_stream(open_, served, ENDLESS)
        served.send_signal()
        eventually(lambda: served.get("/readyz").status_code == 503)
        served.send_signal()
        cut = "".join(text)
        assert cut.count('"server_draining"') == 1
        assert cut.endswith("data: [DONE]\n\n")
        status, _, err = served.ended()
        assert (status, err.count("Traceback")) == (0, 0), err


def test_a_second_signal_does_not_wait_for_an_engine_that_stays(folder: Path) -> None:
    patient = "serve.STOP_SECONDS = 600"
    with serving(folder, worker=["--hang"], plant=patient) as served:
        served.send_signal()
        eventually(lambda: not is_listening(served))
        served.send_signal()
        assert served.ended()[0] == 0


def is_listening(served: Served) -> bool:
    try:
        served.get("/livez")
    except httpx.TransportError:
        return False
    return True


def test_an_idle_server_ends_whatever_its_connections_do(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    with httpx.Client(base_url=served.url) as kept, socket.socket() as half:
        kept.get("/livez")
        half.connect(("127.0.0.1", port))
        half.sendall(b"GET /livez HTTP/1.1\r\n")
        served.send_signal()
        status, _, err = served.ended()
    assert (status, err.count("Traceback")) == (0, 0), err


def test_a_signal_while_it_loads_ends_it(folder: Path, tmp_path: Path) -> None:
    worker = ["--loads-until", str(tmp_path / "never")]
    with serving(folder, worker=worker, until="/livez") as served:
        served.send_signal()
        status, _, err = served.ended()
    assert (status, err.count("Traceback")) == (0, 0), err


def test_during_the_delay_requests_are_served_and_the_server_is_not_ready(folder: Path) -> None:
    with serving(folder, "--shutdown-delay", "600") as served:
        served.send_signal()
        eventually(lambda: served.get("/readyz").status_code == 503)
        answer = served.post("hello")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


@pytest.mark.slow
def test_a_rolling_restart_fails_no_request(folder: Path) -> None:
    asked, failed = roll(folder, 200)
    assert asked >= 200
    assert failed == []
