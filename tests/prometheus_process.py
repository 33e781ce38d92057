"""A real Prometheus that scrapes one server, where the machine has the program."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server_harness import eventually

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="the programs prometheus and promtool are missing (Debian's package is prometheus)",
)
SCRAPE_INTERVAL = "1s"  # which is also how long a scrape may take


class Prometheus:
    """Answers queries; every number is a float, none is NaN."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def query(self, expression: str) -> list[float]:
        """The values of an instant query that are numbers. Raises where it is refused."""
        result = self._get("/query", query=expression)["result"]
        values = [float(sample["value"][1]) for sample in result]
        return [value for value in values if not math.isnan(value)]

    def label_values(self, label: str, metric: str) -> list[str]:
        found: list[str] = self._get(f"/label/{label}/values", **{"match[]": metric})
        return found

    def _get(self, path: str, **params: str) -> Any:
        answer = self._client.get(f"/api/v1{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]


@contextmanager
def running_prometheus(folder: Path, target_port: int) -> Iterator[Prometheus]:
    """Scrape a server on this machine."""
    config = folder / "prometheus.yml"
    config.write_text(
        f"scrape_configs:\n- job_name: falcon\n  scrape_interval: {SCRAPE_INTERVAL}\n"
        f"  scrape_timeout: {SCRAPE_INTERVAL}\n  static_configs:\n"
        f"  - targets: ['127.0.0.1:{target_port}']\n"
    )
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            eventually(lambda: client.get("/-/ready").status_code == 200)
            prometheus = Prometheus(client)
            eventually(lambda: prometheus.query("up") == [1.0])
            yield prometheus
    finally:
        process.terminate()
        process.wait(20)
