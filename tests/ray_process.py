"""Replicas on a Ray cluster of their own on this machine, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server_process import free_port

CLUSTER = """
import json, sys
import ray
from ray import serve
from server.replicas import build

port, folder, arguments = json.loads(sys.argv[1])
ray.init(
    address="local",
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=80 * 2**20,
    _temp_dir=folder,
)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(build(arguments), name="falcon")
print("ready", flush=True)
if sys.stdin.readline():
    serve.delete("falcon")
    sys.stdin.read()
serve.shutdown()
ray.shutdown()
"""
ROOT = Path(__file__).parent.parent
START_SECONDS = 120.0
ACTOR = "ray::ServeReplica:falcon:"
ENGINE = "engine.worker"


@dataclass
class Cluster:
    """An application that answers at the client's address."""

    process: subprocess.Popen[str]
    client: httpx.Client
    folder: Path

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def actors(self, deployment: str = "Replica") -> set[int]:
        """Process ids of a deployment's actors."""
        return {pid for pid, words in self._processes() if words.startswith(ACTOR + deployment)}

    def engines(self) -> set[int]:
        return {pid for pid, words in self._processes() if ENGINE in words}

    def parent(self, pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    def delete(self) -> None:
        """Take the application away; Ray stays."""
        assert self.process.stdin is not None
        self.process.stdin.write("delete\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """End the cluster in order."""
        self.process.communicate(timeout=START_SECONDS)

    def _processes(self) -> Iterator[tuple[int, str]]:
        """Those of this cluster, which have its mark in their environment."""
        mark = f"FALCON_TEST_CLUSTER={self.folder}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    yield int(entry.name), words
            except OSError:
                continue

    def left(self) -> dict[int, str]:
        """Processes that are still there."""
        return dict(self._processes())


@contextmanager
def running_cluster(arguments: dict[str, Any]) -> Iterator[Cluster]:
    """Serve `server.replicas:build` with these arguments, from when it is ready."""
    folder, port = Path(tempfile.mkdtemp(prefix="ray-")), free_port()  # sockets need short paths
    words = json.dumps([port, str(folder), arguments])
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "FALCON_TEST_CLUSTER": str(folder),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env=environment,
    )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_SECONDS)
    cluster = Cluster(process, client, folder)
    try:
        assert process.stdout is not None
        assert any(line == "ready\n" for line in process.stdout), "the cluster did not start"
        yield cluster
    finally:
        client.close()
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=START_SECONDS)
        for pid in cluster.left():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
