"""Frames between the HTTP process and the engine process; imports no torch.

One frame is a 4-byte big-endian length and that many bytes of msgpack. The worker, which has a
loop of its own, uses `Connection`:

    connection = Connection(socket.socket(fileno=int(sys.argv[1])), to_engine_decoder())
    [config] = connection.receive(block=True)
    connection.send(Ready(...))
    while True:
        for message in connection.receive(block=not engine.has_work):
            ...

The HTTP process reads with asyncio and feeds the bytes to a `FrameDecoder`.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from .messages import FromEngine, ToEngine
from .orders import Order

MAX_FRAME_BYTES = 64 * 1024 * 1024
_READ_BYTES = 256 * 1024
_LENGTH = struct.Struct(">I")

Message = TypeVar("Message")


class BadFrame(Exception):
    """The other end sent something that is no frame of ours; the connection cannot go on."""


def encode_frame(message: msgspec.Struct) -> bytes:
    """One message, ready to be written to the socket. Raises `BadFrame` when it is too long."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder(Generic[Message]):
    """Cuts a byte stream into messages, however the bytes were split on their way."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Message]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes, in order. Raises `BadFrame`."""
        self._buffer += data
        messages: list[Message] = []
        start = 0
        while (body := self._next_body(start)) is not None:
            start += _LENGTH.size + len(body)
            messages.append(self._decode(body))
        del self._buffer[:start]
        return messages

    def _next_body(self, start: int) -> bytes | None:
        if len(self._buffer) - start < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, start)
        if length > MAX_FRAME_BYTES:
            raise BadFrame(f"a frame announces {length} bytes; the limit is {MAX_FRAME_BYTES}")
        first = start + _LENGTH.size
        if len(self._buffer) - first < length:
            return None
        return bytes(self._buffer[first : first + length])

    def _decode(self, body: bytes) -> Message:
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise BadFrame(f"a frame of {len(body)} bytes does not decode: {error}") from error


def to_engine_decoder() -> FrameDecoder[ToEngine]:
    """What the engine process reads with."""
    return FrameDecoder(_decoder_of(ToEngine))


def from_engine_decoder() -> FrameDecoder[FromEngine]:
    """What the HTTP process reads with."""
    return FrameDecoder(_decoder_of(FromEngine))


def order_decoder() -> FrameDecoder[Order]:
    """What the other ranks of a split model read with."""
    return FrameDecoder(_decoder_of(Order))


def _decoder_of(union: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(union)  # Any: a union is no `type` to mypy


class Connection(Generic[Message]):
    """The end of a socket in a process with a loop of its own: blocking, no event loop."""

    def __init__(self, sock: socket.socket, frames: FrameDecoder[Message]) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._frames = frames
        self._is_at_end = False

    def send(self, message: msgspec.Struct) -> None:
        """Write one message. Raises `EOFError` when the other end is gone."""
        try:
            self._sock.sendall(encode_frame(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError("the other end is gone") from error

    def receive(self, block: bool) -> list[Message]:
        """Every complete message that is there now; with `block`, wait for at least one.

        Raises `EOFError` when the other end is gone and all it sent has been returned.
        """
        messages: list[Message] = []
        while not self._is_at_end:
            data = self._read(wait=block and not messages)
            if data is None:
                return messages
            self._is_at_end = not data
            messages += self._frames.feed(data)
        if not messages:
            raise EOFError("the other end is gone")
        return messages

    def _read(self, wait: bool) -> bytes | None:
        """Bytes, b"" at the end of the stream, None when there is nothing to read yet."""
        try:
            return self._sock.recv(_READ_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self._sock.close()
