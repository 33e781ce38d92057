"""Reads a request body as one strict JSON object, whatever its content type says.

Strict means: UTF-8, finite numbers, integers of at most 64 bits, no duplicate keys, no lone
surrogates, at most 32 levels. Everything else is a 400 here, so that nothing downstream meets it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator

from fastapi import Request

from .errors import ApiError, body_too_large, body_too_slow, invalid

MAX_BODY_BYTES = 1024 * 1024
MAX_DISCARDED_BYTES = 16 * MAX_BODY_BYTES
MAX_DEPTH = 32
READ_SECONDS = 30.0
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


async def read_object(request: Request) -> dict[str, object]:
    """The body as a dict. Raises `ApiError` 400, 408 or 413."""
    return parse_object(await read_body(request))


async def read_body(request: Request) -> bytes:
    """All of it. Raises `ApiError` 408 or 413."""
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await _read_bytes(request)
    except TimeoutError:
        raise body_too_slow(READ_SECONDS) from None


async def _read_bytes(request: Request) -> bytes:
    """The body. One that is too long is read on and thrown away, up to a bound.

    To answer and close while the client still sends resets the connection, and the answer is lost.
    """
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            body += chunk
        elif size > MAX_DISCARDED_BYTES:
            break
    if size > MAX_BODY_BYTES:
        raise body_too_large(MAX_BODY_BYTES)
    return bytes(body)


def parse_object(body: bytes) -> dict[str, object]:
    """The JSON object in `body`. Raises `ApiError` 400 naming the field where there is one."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError):
        raise invalid(
            "We could not parse the body of your request: it must be one JSON object in UTF-8, "
            "without duplicate keys."
        ) from None
    if not isinstance(value, dict):
        raise invalid("The request body must be a JSON object.")
    _check_values(value)
    return value


def is_plain_name(name: str) -> bool:
    """True for names that may appear in an error, a header or the log."""
    return _PLAIN_NAME.fullmatch(name) is not None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("duplicate key")
    return fields


def _check_values(root: object) -> None:
    """Walk all values without recursion; raise for the first that no field can accept."""
    pending: list[tuple[object, tuple[str, ...]]] = [(root, ())]
    while pending:
        value, path = pending.pop()
        if len(path) >= MAX_DEPTH:
            raise invalid(f"The request body is nested deeper than {MAX_DEPTH} levels.")
        if (complaint := _complaint(value)) is not None:
            raise _at(path, complaint)
        if _is_list_of_ids(value) and len(path) + 1 < MAX_DEPTH:
            continue
        for name, child in _children(value):
            if not _is_encodable(name):
                raise _at(path, "keys must be valid Unicode without lone surrogates")
            pending.append((child, (*path, name)))


def _is_list_of_ids(value: object) -> bool:
    """True for a list of nothing but small numbers, of which a prompt may have a hundred thousand.

    They need no look at each with its place.
    """
    return isinstance(value, list) and all(type(i) is int and 0 <= i < 2**32 for i in value)


def _children(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from ((str(index), item) for index, item in enumerate(value))


def _complaint(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "numbers must be finite"
    if isinstance(value, int) and value.bit_length() > 64:
        return "integers must fit in 64 bits"
    if isinstance(value, str) and not _is_encodable(value):
        return "text must be valid Unicode without lone surrogates"
    return None


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _at(path: tuple[str, ...], complaint: str) -> ApiError:
    param = ".".join(path)
    if not is_plain_name(param):
        return invalid(f"Invalid value: {complaint}.")
    return invalid(f"Invalid '{param}': {complaint}.", param)
