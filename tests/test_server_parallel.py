"""`falcon serve` with two ranks: answers outlive its processes, and no process outlives it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from fakes import save_random_drafter
from tiny_chat import save_chat_target

from tests.server_harness import eventually
from tests.server_process import CHAT, chat, free_port

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="needs a machine without an accelerator"
)
COMMAND = "import sys; from server.cli import main; sys.exit(main(sys.argv[1:]))"
PATIENCE = 90.0  # while models load, on a machine that is busy with others
ASKED = {"max_tokens": 150, "ignore_eos": True, "temperature": 0.9, "seed": 3}


class Server:
    """The server's process, and those below it."""

    def __init__(self, *words: str) -> None:
        port = free_port()
        command = [sys.executable, "-c", COMMAND, "serve", *words, "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)

    @property
    def is_ready(self) -> bool:
        return self.client.get("/readyz").status_code == 200

    def below(self) -> list[psutil.Process]:
        processes: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return processes

    def ranks(self) -> list[psutil.Process]:
        """The engine, which is rank 0, and the other rank."""
        names = ("engine.worker", "engine.follower")
        return [p for name in names for p in self.below() if name in p.cmdline()]

    def stream(self, **fields: Any) -> Iterator[str]:
        """The answer, as it comes."""
        body = chat("a tale") | ASKED | {"model": "target", "stream": True} | fields
        with self.client.stream("POST", CHAT, json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    yield event["choices"][0]["delta"].get("content") or ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    target = save_chat_target(tmp_path / "target", context=256)
    drafter = save_random_drafter(target, tmp_path / "drafter")
    sizes = ("--tensor-parallel-size", "2", "--threads", "1", "--dtype", "float32")
    server = Server(str(target), "--drafter", str(drafter), *sizes)
    try:
        eventually(lambda: server.is_ready, PATIENCE)
        yield server
    finally:
        server.client.close()
        server.process.kill()
        server.process.wait()


def test_answers_go_on_when_a_rank_dies_and_no_process_is_left_over(server: Server) -> None:
    expected = "".join(server.stream(speculative={"enabled": False}))
    assert len(expected) > 50
    assert "".join(server.stream()) == expected

    _, other = first = server.ranks()
    running = server.stream()
    begun = next(running) + next(running)
    other.kill()
    assert begun + "".join(running) == expected
    assert gone(first)

    engine, other = second = server.ranks()
    other.suspend()  # it cannot end by itself
    engine.kill()
    assert gone(second)

    below = server.below()
    server.process.terminate()
    assert server.process.wait(PATIENCE) == 0
    assert gone(below)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, PATIENCE)[1]
