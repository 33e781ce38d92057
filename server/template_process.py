"""A chat template in a process of its own, which may be killed: see `template_worker.py`."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .template_worker import receive, send
from .templates import BadTemplate, Conversation, PromptTooLong, TemplateRefused

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "server.template_worker")
ANSWER_SECONDS = 30.0  # of the wall's clock, for a process that is stopped; CPU time ends sooner
_ROOT = Path(__file__).resolve().parent.parent


class ConfinedTemplate:
    """Renders as `ChatTemplate` does, and is to be closed. Thread-safe: one rendering at a time.

    A rendering that takes too much time or memory is refused, and the next one gets a new process.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str], tool_source: str | None = None
    ) -> None:
        """Raises `BadTemplate`, also for a template that cannot be read within bounds."""
        names = dict(variables)
        self._definition = {"source": source, "variables": names, "tool_source": tool_source}
        self._lock = threading.Lock()
        self._is_closed = False
        process = _Process(self._definition)
        self._process: _Process | None = process
        self.source = process.facts["source"]
        self.variables = set(process.facts["variables"])
        self.reserved = set(process.facts["reserved"])

    def render(self, conversation: Conversation, limit: int) -> str:
        """The prompt. Raises `TemplateRefused`, and `PromptTooLong` above `limit` characters."""
        message = {"conversation": asdict(conversation), "limit": limit}
        with self._lock:
            try:
                answer = self._running().ask(message)
            except (OSError, EOFError, BadTemplate):
                self._end()
                logger.error("the chat template took too long or too much memory, and was ended")
                raise TemplateRefused(
                    "The model's chat template takes too long or too much memory over these "
                    "messages."
                ) from None
        if "refused" in answer:
            raise TemplateRefused(answer["refused"])
        if "too_long" in answer:
            raise PromptTooLong
        text: str = answer["text"]
        return text

    def close(self) -> None:
        """A rendering that is under way is refused, and so are all that follow."""
        self._is_closed = True
        self._end()

    def _running(self) -> _Process:
        if self._is_closed:
            raise EOFError
        if self._process is None:
            self._process = _Process(self._definition)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _Process:
    def __init__(self, definition: dict[str, Any]) -> None:
        """Raises `BadTemplate`."""
        self._sock, theirs = socket.socketpair()
        self._sock.settimeout(ANSWER_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what it could say may quote a prompt
                cwd="/",
                env={name: os.environ[name] for name in ("TZ",) if name in os.environ}
                | {"PYTHONPATH": str(_ROOT)},
                start_new_session=True,
            )
        try:
            self.facts = self.ask(definition)
        except (OSError, EOFError):
            self.end()
            raise BadTemplate("the chat template takes too long to read") from None
        if "bad" in self.facts:
            self.end()
            raise BadTemplate(self.facts["bad"])

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Raises `OSError` or `EOFError` when the process is gone."""
        send(self._sock, message)
        return receive(self._sock)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._sock.close()  # last: another thread may be reading it, and now comes to its end
