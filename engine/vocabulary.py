"""The text of every token, as the server will decode it: what grammars are matched against."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .grammar.regexes import GrammarError
from .grammar.sources import TAGS
from .token_bytes import is_byte_level, token_bytes

_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"}


def read_vocabulary(folder: Path, size: int, end_ids: Collection[int]) -> list[bytes]:
    """The bytes of tokens 0 to `size` - 1; none for those that are never text.

    These are special tokens but tags, `end_ids`, and ids that the tokenizer does not have. Raises
    `GrammarError` where the folder has no tokenizer whose tokens stand for bytes.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise GrammarError("the served model has no tokenizer.json, so it can follow no grammar")
    definition = json.loads(file.read_bytes())
    _check_decoder(definition)
    tokenizer, is_bytes = Tokenizer.from_file(str(file)), is_byte_level(definition)
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = [b""] * size
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number >= size or number in end_ids:
            continue
        if number not in added:
            vocabulary[number] = token_bytes(token, is_bytes)
        elif token in TAGS or not added[number].special:
            vocabulary[number] = token.encode()
    return vocabulary


def _check_decoder(definition: Mapping[str, Any]) -> None:
    """With these decoders a text is the bytes of its tokens, one after the other."""
    decoder = definition.get("decoder") or {}
    parts = [decoder, *decoder.get("decoders", [])]
    if not {part.get("type") for part in parts} <= _DECODERS:
        raise GrammarError("the served model's tokenizer has a decoder that grammars cannot follow")
