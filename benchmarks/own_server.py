"""`falcon serve` as a user starts it, for measurements and tests of the real engine behind HTTP."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .settings import BenchmarkError

STOP_SECONDS = 60.0
_RUN = "import sys; from server.cli import main; sys.exit(main())"


@contextmanager
def own_server(*options: str) -> Iterator[tuple[str, int]]:
    """Address (with /v1) and process id of a server that is ready, on a free port.

    Raises `BenchmarkError` if it does not come up, or does not end in order.
    """
    with tempfile.TemporaryDirectory() as folder:
        said, complaints = Path(folder, "stdout"), Path(folder, "stderr")
        command = [sys.executable, "-c", _RUN, "serve", "--port", "0", *options]
        with said.open("w") as stdout, complaints.open("w") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        try:
            yield _address(said, complaints, process), process.pid
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise BenchmarkError(f"the server did not end in {STOP_SECONDS} s") from None
            if status:
                raise BenchmarkError(f"the server ended with status {status}")
        finally:
            process.kill()
            process.wait()


def _address(said: Path, complaints: Path, process: subprocess.Popen[bytes]) -> str:
    while (found := re.search(r"address\s+(\S+)\n", said.read_text())) is None:
        if process.poll() is not None:
            raise BenchmarkError(f"the server did not start: {complaints.read_text()[-500:]}")
        time.sleep(0.1)
    return found.group(1)
