"""A rolling restart of two servers under load: no request fails.

    python -m tests.rolling_restart --requests 1000

The balancer does what balancers do: it asks `/readyz` of each server and sends requests to those
that are ready. It tries nothing twice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import httpx

from tests.server_harness import PATIENCE, build_model_folder
from tests.server_process import free_port, serving

LOOK_SECONDS = 0.05
DELAY = 30 * LOOK_SECONDS  # that a server serves on after the signal
CLIENTS = 4


class Balancer:
    """Sends requests round the servers that were ready when it last looked."""

    def __init__(self, urls: list[str]) -> None:
        self.ready: dict[str, bool] = dict.fromkeys(urls, False)
        self._clients = {url: httpx.Client(base_url=url, timeout=PATIENCE) for url in urls}
        self._looks = {url: httpx.Client(base_url=url, timeout=PATIENCE) for url in urls}
        self._turns = cycle(urls)
        self._lock = threading.Lock()
        self._is_over = threading.Event()

    @contextmanager
    def looking(self) -> Iterator[None]:
        watcher = threading.Thread(target=self._look)
        watcher.start()
        try:
            yield
        finally:
            self._is_over.set()
            watcher.join()
            for client in (*self._clients.values(), *self._looks.values()):
                client.close()

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            for url, client in self._looks.items():
                try:
                    self.ready[url] = client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    self.ready[url] = False

    def ask(self) -> str | None:
        """One request; what went wrong with it, if anything."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
        with self._lock:
            url = next(url for url in self._turns if self.ready[url])
        try:
            answer = self._clients[url].post("/v1/chat/completions", json=body)
        except httpx.TransportError as error:
            return repr(error)
        return None if answer.status_code == 200 else answer.text

    def wait_for(self, url: str, is_ready: bool) -> None:
        while self.ready[url] is not is_ready:
            time.sleep(LOOK_SECONDS)


class Server:
    """One of the two, started again on its own port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._stack = ExitStack()

    def start(self) -> None:
        """Returns once it is ready."""
        words = ["--shutdown-delay", str(DELAY)]
        process = serving(self._folder, *words, port=self._port)
        self._process = self._stack.enter_context(process)

    def stop(self) -> None:
        self._process.send_signal()
        status, _, err = self._process.ended()
        self._stack.close()
        assert status == 0, err


def roll(folder: Path, requests: int) -> tuple[int, list[str]]:
    """Restart both servers under load, again and again until there were so many requests.

    How many there were, and what went wrong.
    """
    servers = [Server(folder), Server(folder)]
    balancer = Balancer([server.url for server in servers])
    answers: list[str | None] = []
    is_over = threading.Event()

    def ask_on() -> None:
        while not is_over.is_set():
            answers.append(balancer.ask())

    for server in servers:
        server.start()
    with balancer.looking(), ThreadPoolExecutor(CLIENTS) as pool:
        for server in servers:
            balancer.wait_for(server.url, True)
        asking = [pool.submit(ask_on) for _ in range(CLIENTS)]
        try:
            while len(answers) < requests:
                for server in servers:
                    server.stop()
                    balancer.wait_for(server.url, False)
                    server.start()
                    balancer.wait_for(server.url, True)
        finally:
            is_over.set()
        for client in asking:
            client.result()
    for server in servers:
        server.stop()
    return len(answers), [answer for answer in answers if answer is not None]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A rolling restart of two servers under load.")
    parser.add_argument("--requests", type=int, default=1000)
    requests = parser.parse_args(argv).requests
    with tempfile.TemporaryDirectory() as folder:
        asked, failed = roll(build_model_folder(Path(folder)), requests)
    print(f"{asked} requests, {len(failed)} failed", *failed[:3], sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
