"""Texts that a grammar allows, found by chance: no model, a vocabulary of the 256 bytes."""

from __future__ import annotations

import random
from functools import cache

import torch
import xgrammar

from engine.grammar.sources import Kind, source_of
from engine.grammars import compile_source

VOCABULARY = [bytes([byte]) for byte in range(256)]


@cache
def byte_compiler() -> xgrammar.GrammarCompiler:
    info = xgrammar.TokenizerInfo(VOCABULARY, xgrammar.VocabType.RAW, stop_token_ids=[])
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def walks(kind: Kind, text: str, count: int = 20, seed: int = 0) -> list[str]:
    """Up to `count` texts of the grammar; those that do not come to an end are left out."""
    compiled = compile_source(byte_compiler(), source_of(kind, text))
    dice = random.Random(seed)
    found = [_walk(compiled, dice) for _ in range(count)]
    return [walk.decode(errors="replace") for walk in found if walk is not None]


def _walk(
    compiled: xgrammar.CompiledGrammar, dice: random.Random, limit: int = 250
) -> bytes | None:
    """The longer it gets, the more it looks for the end."""
    parser = xgrammar.GrammarMatcher(compiled)
    bits = xgrammar.allocate_token_bitmask(1, 256)
    walk = b""
    while len(walk) < limit:
        if parser.is_completed() and dice.random() < 0.6:
            return walk
        parser.fill_next_token_bitmask(bits)
        allowed = ((bits[0, :, None] >> torch.arange(32)) & 1).flatten().nonzero().flatten()
        options = allowed.tolist()
        if not options:
            assert parser.is_completed(), f"nothing goes on behind {walk!r}"
            return walk
        closing = [byte for byte in options if byte in b'"]}']
        plain = [byte for byte in options if 32 <= byte < 127]
        if closing and dice.random() < 0.3 + len(walk) / limit:
            options = closing
        elif plain and dice.random() < 0.8:
            options = plain
        byte = dice.choice(options)
        assert parser.accept_token(byte)
        walk += bytes([byte])
    return None


def accepts(kind: Kind, text: str, *candidates: str) -> list[bool]:
    """Which of the candidates the grammar allows as a whole."""
    compiled = compile_source(byte_compiler(), source_of(kind, text))
    found = []
    for candidate in candidates:
        parser = xgrammar.GrammarMatcher(compiled)
        is_read = all(map(parser.accept_token, candidate.encode()))
        found.append(is_read and parser.is_completed())
    return found
