"""The bytes that a token of a vocabulary stands for, be they whole characters or not; no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's spelling: printable bytes are themselves, the rest U+0100, U+0101, ..."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


_ALPHABET = byte_alphabet()


def is_byte_level(definition: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` spells tokens in the alphabet of byte-level BPE."""
    return '"ByteLevel"' in json.dumps(definition.get("decoder"))


def token_bytes(token: str, is_byte_level: bool) -> bytes:
    """`token` is its spelling in the vocabulary: of byte-level BPE, or of SentencePiece's kind."""
    if is_byte_level and _ALPHABET.keys() >= set(token):
        return bytes(_ALPHABET[char] for char in token)
    if (match := _BYTE_TOKEN.fullmatch(token)) is not None:
        return bytes.fromhex(match[1])
    return token.replace(_SPACE, " ").encode()
