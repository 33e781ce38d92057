"""`falcon serve` as a process of its own, with the fake worker behind it, for signals and logs."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server_harness import PATIENCE, eventually, worker_command

SERVE = """
import json, sys
from server import cli, serve
serve.serve.__defaults__ = (json.loads(sys.argv[1]), *serve.serve.__defaults__[1:])
exec(sys.argv[2])
sys.exit(cli.main(["serve", *sys.argv[3:]]))
"""
CHAT = "/v1/chat/completions"


def chat(content: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}]}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def start(*words: str, worker: Sequence[str] = (), plant: str = "") -> subprocess.Popen[str]:
    """`worker` are options of the fake worker, `plant` is Python that runs before the command."""
    command = json.dumps(worker_command(*worker))
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE, command, plant, *words],
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


@dataclass
class Served:
    """A server process that answers at `url`."""

    process: subprocess.Popen[str]
    client: httpx.Client

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def send_signal(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.process.pid, number)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def post(self, content: str, **options: Any) -> httpx.Response:
        return self.client.post(CHAT, json=chat(content), **options)

    def stream(self, content: str) -> AbstractContextManager[httpx.Response]:
        return self.client.stream("POST", CHAT, json=chat(content) | {"stream": True})

    def ended(self) -> tuple[int, str, str]:
        """Exit status, stdout and stderr, once it has ended."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


def accepts(uds: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(uds)) == 0


@contextmanager
def serving(
    folder: Path,
    *words: str,
    worker: Sequence[str] = (),
    port: int | None = None,
    until: str = "/readyz",
    plant: str = "",
    uds: Path | None = None,
    verify: ssl.SSLContext | None = None,
) -> Iterator[Served]:
    """Serve `folder` as "tiny" from when `until` is a 200; killed at the end if it still runs."""
    port = port or free_port()
    names = ["--port", str(port), "--served-model-name", "tiny"]
    process = start(str(folder), *names, *words, worker=worker, plant=plant)
    client = httpx.Client(
        base_url=f"{'http' if verify is None else 'https'}://127.0.0.1:{port}",
        timeout=PATIENCE,
        transport=httpx.HTTPTransport(
            uds=None if uds is None else str(uds), verify=True if verify is None else verify
        ),
    )
    served = Served(process, client)

    def answers() -> bool:
        assert process.poll() is None, process.communicate()[1]
        return served.get(until).status_code == 200

    try:
        if uds is not None:  # httpx leaves the socket of a failed attempt open
            eventually(lambda: accepts(uds))
        eventually(answers)
        yield served
    finally:
        client.close()
        if process.poll() is None:
            process.kill()
        process.communicate()
