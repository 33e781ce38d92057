"""`falcon serve` as a user starts it, for tests that need the real engine behind HTTP."""

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

RUN = "import sys; from server.cli import main; sys.exit(main())"


@contextmanager
def own_server(*options: str) -> Iterator[tuple[str, int]]:
    """Address (with /v1) and process id of a server that is ready; checks that it ends in order."""
    with tempfile.NamedTemporaryFile() as said:
        command = [sys.executable, "-c", RUN, "serve", "--port", "0", *options]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL)
        try:
            yield _address(Path(said.name), process), process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        finally:
            process.kill()
            process.wait()


def _address(said: Path, process: subprocess.Popen[bytes]) -> str:
    while (found := re.search(r"address\s+(\S+)\n", said.read_text())) is None:
        assert process.poll() is None, "the server ended before it was ready"
        time.sleep(0.1)
    return found.group(1)
