"""The engine's own process, with a model: how it becomes ready, and how it ends."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tiny_chat import save_chat_target

from engine.config import EngineConfig
from engine.messages import FromEngine, Ready, Shutdown
from engine.process import WORKER_COMMAND
from engine.wire import Connection, from_engine_decoder

PATIENCE = 120.0  # while torch is imported, on a machine that is busy with others


def test_an_engine_that_is_told_to_leave_reports_no_leaks(tmp_path: Path) -> None:
    config = EngineConfig(model=str(save_chat_target(tmp_path)), dtype="float32", max_num_seqs=1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = subprocess.Popen(
            [*WORKER_COMMAND, str(theirs.fileno())],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(theirs.fileno(),),
        )
    ours.settimeout(PATIENCE)
    connection: Connection[FromEngine] = Connection(ours, from_engine_decoder())
    connection.send(config)
    assert isinstance(connection.receive(block=True)[0], Ready)
    connection.send(Shutdown())
    said, _ = process.communicate(timeout=PATIENCE)
    connection.close()
    assert (process.returncode, said.count("leaked")) == (0, 0), said
