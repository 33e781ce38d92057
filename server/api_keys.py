"""The keys that open the server: only digests are kept, and compared in constant time.

A key file holds one key a line; empty lines and lines that begin with `#` are left out. It is read
again on SIGHUP, so that keys can be changed without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

_KEY = re.compile(r"[!-~]{1,512}")  # what an HTTP header carries unchanged
_SHOWN_DIGITS = 16


class BadKeys(Exception):
    """Keys that cannot be used; the text names no key."""


class ApiKeys:
    """The keys given and those of a file. Without any the server is open to everybody."""

    def __init__(self, given: Iterable[str] = (), file: Path | None = None) -> None:
        """Raises `BadKeys`."""
        self._given = [_digest(_checked(key)) for key in given]
        self._file = file
        self._digests = self._given
        self.reload()

    @property
    def are_required(self) -> bool:
        return bool(self._digests)

    def reload(self) -> None:
        """Read the file again. Raises `BadKeys`, and then the keys stay what they were."""
        if self._file is not None:
            self._digests = [*self._given, *(_digest(key) for key in _read(self._file))]

    def admit(self, key: str) -> bool:
        """Whether it is one of them, in a time that does not tell how nearly."""
        offered = _digest(key)
        matches = [hmac.compare_digest(digest, offered) for digest in self._digests]
        return any(matches)


def key_digest(key: str) -> str:
    """A short name for a key that does not tell it."""
    return _digest(key).hex()[:_SHOWN_DIGITS]


def bearer_key(authorization: str) -> str:
    """The key of an `Authorization: Bearer` header; "" where there is none."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _checked(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise BadKeys("an API key must be 1 to 512 visible ASCII characters without blanks")
    return key


def _read(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeError) as error:
        raise BadKeys(f"the key file {file} cannot be read: {type(error).__name__}") from None
    keys = [_checked(line) for line in lines if line and not line.startswith("#")]
    if not keys:
        raise BadKeys(f"the key file {file} holds no key: write one a line")
    return keys
