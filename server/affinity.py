"""Which replica a conversation belongs to: the one that holds its beginning in its cache.

The key of a request is a hash of how its conversation begins, up to the first message of a user,
so every later turn has the same one, whatever endpoint and spelling it comes in.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

SPREAD = 1.25  # a replica may have this much more than the mean before others take its share
PROMPT_CHARACTERS = 128  # of a raw prompt, whose turns cannot be told apart
PROMPT_TOKENS = 32


def conversation_key(body: bytes) -> str | None:
    """The key of a request; None for a body that is no conversation."""
    try:
        request = msgspec.json.decode(body)
        beginning = list(_beginning(request)) if isinstance(request, dict) else []
        text = json.dumps(beginning)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return hashlib.sha256(text.encode()).hexdigest() if beginning else None


def ranked(key: str | None, loads: Mapping[str, int], slots: int) -> list[str]:
    """All replicas, the one to ask first in front; `loads` are their requests, by name.

    Rendezvous hashing: each replica has a hash with the key, and the highest one wins, so a replica
    that comes or goes moves no other conversation. Who has no free slot (of `slots`) and more than
    its share is passed over. Without a key it is who has the least to do.
    """
    by_load = sorted(loads, key=lambda name: (loads[name], random.random()))
    if key is None:
        return by_load
    share = math.ceil(SPREAD * (sum(loads.values()) + 1) / max(1, len(loads)))
    bound = max(slots, share)
    by_hash = sorted(loads, key=lambda name: _digest(key, name), reverse=True)
    return [name for name in by_hash if loads[name] < bound] + [
        name for name in by_load if loads[name] >= bound
    ]


def _digest(key: str, name: str) -> bytes:
    return hashlib.sha256(f"{key}/{name}".encode()).digest()


def _beginning(request: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Roles and texts, up to the first user's; the beginning of a raw prompt."""
    messages = request.get("messages", request.get("input"))
    if messages is None:
        yield from _prompt_beginning(request.get("prompt"))
        return
    if isinstance(instructions := request.get("instructions"), str):
        yield "system", instructions
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and isinstance(role := message.get("role"), str):
            yield role, _text(message.get("content"))
            if role == "user":
                return


def _text(content: object) -> str:
    """Of a message, whether it is in parts or not."""
    if isinstance(content, list):
        return "".join(str(part.get("text")) for part in content if isinstance(part, dict))
    return str(content)


def _prompt_beginning(prompt: object) -> Iterator[tuple[str, object]]:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        yield "prompt", prompt[:PROMPT_CHARACTERS]
    elif isinstance(prompt, list) and prompt:
        yield "tokens", prompt[:PROMPT_TOKENS]
