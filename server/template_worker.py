"""The process that renders a chat template: `python -m server.template_worker`, a socket as stdin.

A template is a program out of a model folder. The sandbox keeps it from our objects, but not from
time and memory: `{{ 9 ** (9 ** 9) }}` holds the interpreter's lock, in whatever thread it runs. So
it runs here, where the kernel ends the whole process once a rendering has had its CPU seconds, and
allocations fail beyond a bound. It inherits no environment and no files.

    first message in: arguments of `ChatTemplate`   out: its attributes, or {"bad": reason}
    each later one: conversation and limit          out: {"text": prompt}, {"refused": reason}
                                                         or {"too_long": true}
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

from .templates import BadTemplate, ChatTemplate, Conversation, PromptTooLong, TemplateRefused

CPU_SECONDS = 2.0
MEMORY_BYTES = 1024**3
MAX_FRAME_BYTES = 16 * 1024**2
_LENGTH = struct.Struct(">I")


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    sock.sendall(_LENGTH.pack(len(body)) + body)


def receive(sock: socket.socket) -> dict[str, Any]:
    """The next message. Raises `EOFError` at the end, and for one that is too long."""
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise EOFError(f"a frame of {length} bytes")
    message: dict[str, Any] = json.loads(_exactly(sock, length))
    return message


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        if not (piece := sock.recv(count - len(data))):
            raise EOFError("the other end is gone")
        data += piece
    return bytes(data)


def main() -> int:
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    if allowed == resource.RLIM_INFINITY or allowed > MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with contextlib.suppress(EOFError), socket.socket(fileno=sys.stdin.fileno()) as sock:
        serve(sock)
    return 0


def serve(sock: socket.socket) -> None:
    """Raises `EOFError` when the server is gone."""
    definition = receive(sock)
    try:
        with _limited():
            template = ChatTemplate(**definition)
    except BadTemplate as error:
        send(sock, {"bad": str(error)})
        return
    names = {"variables": [*template.variables], "reserved": [*template.reserved]}
    send(sock, {"source": template.source, **names})
    while True:
        message = receive(sock)
        with _limited():
            answer = _render(template, message)
        send(sock, answer)


def _render(template: ChatTemplate, message: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"text": template.render(Conversation(**message["conversation"]), message["limit"])}
    except TemplateRefused as error:
        return {"refused": str(error)}
    except PromptTooLong:
        return {"too_long": True}


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Python handles no signal here: the default for this one is the end of the process."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    sys.exit(main())
