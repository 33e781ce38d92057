"""Log-probabilities as OpenAI's text completions have them: parallel lists, one item a token.

A token is named by its text; one that is part of a character, by its bytes: `bytes:\\xe6\\xbc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

KEYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def legacy(entries: Sequence[dict[str, Any]], offsets: Sequence[int]) -> dict[str, list[Any]]:
    """`entries` of the chat schema, whose texts start at `offsets`."""
    columns = (
        [_name(entry) for entry in entries],
        [entry["logprob"] for entry in entries],
        [_best(entry) for entry in entries],
        list(offsets),
    )
    return dict(zip(KEYS, columns, strict=True))


def joined(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Several as one."""
    return {key: [item for part in parts for item in part[key]] for key in KEYS}


def _best(entry: dict[str, Any]) -> dict[str, float] | None:
    """The likeliest tokens, best first, and the token itself; none beside a prompt's first one."""
    if entry["logprob"] is None:
        return None
    named: dict[str, float] = {}
    for own in (*entry["top_logprobs"], entry):
        named.setdefault(_name(own), own["logprob"])
    return named


def _name(entry: dict[str, Any]) -> str:
    own = bytes(entry["bytes"] or [])
    try:
        return own.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)
