"""Text to token ids and back, from a model folder; imports no torch, hence no transformers."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .templates import ChatTemplate, find_template
from .token_bytes import token_bytes


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Ids of a text, and which of them were added around it."""

    ids: list[int]
    is_added: list[bool]


class ChatTokenizer:
    """Encodes conversations so that only the template writes special tokens, never a user.

    How: before rendering, every special token's text inside a message is replaced by an
    unguessable marker; the template may trim or move it like any other word. The rendered text is
    cut at the markers, its pieces are encoded with special tokens on, and what each marker stands
    for is encoded with them off. A conversation without such text, that is nearly every one, is
    encoded in one go and gives exactly the ids of Hugging Face's `apply_chat_template`.
    """

    def __init__(
        self,
        definition: str,
        template: ChatTemplate | None,
        stop_ids: list[int],
        model_vocab_size: int | None = None,
    ) -> None:
        self.template = template
        self.stop_ids = stop_ids
        self._definition = definition
        self._tokenizer = Tokenizer.from_str(definition)
        added = self._tokenizer.get_added_tokens_decoder()
        specials = {number: token.content for number, token in added.items() if token.special}
        self.special_ids = frozenset(specials) | frozenset(stop_ids)  # neither is ever text
        self._added = frozenset(added)
        self._bytes: dict[int, bytes | None] = {}  # of tokens that were asked for
        known = max([*self._tokenizer.get_vocab(with_added_tokens=True).values(), -1]) + 1
        self.vocab_size = min(known, model_vocab_size or known)  # ids that both text and model know
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(definition).get("decoder"))
        longest_first = sorted(filter(None, specials.values()), key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Prompt ids, ending where the assistant begins. Raises `templates.TemplateRefused`."""
        assert self.template is not None, "the route refuses a model without a template"
        nonce = secrets.token_hex(16)
        found: list[str] = []

        def hide(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"x{nonce}x{len(found) - 1}x"

        hidden = [
            m | {"content": self._specials.sub(hide, m["content"])} for m in map(dict, messages)
        ]
        rendered = self.template.render(hidden, add_generation_prompt)
        pieces = re.split(f"x{nonce}x([0-9]+)x", rendered)
        ids = self._encode(pieces[0])
        for number, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            ids += self._plain.encode(found[int(number)], add_special_tokens=False).ids
            ids += self._encode(piece)
        return ids

    def encode_text(self, text: str, add_special_tokens: bool) -> EncodedText:
        """Ids of raw text, in which the names of special tokens stand for them.

        `add_special_tokens` adds what the model's tokenizer puts around a text, mostly a BOS.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        is_added = [bool(mask) for mask in encoding.special_tokens_mask]
        return EncodedText(encoding.ids, is_added)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens in it are written by name."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def ids_of(self, tokens: Collection[str]) -> set[int]:
        """The ids of those `tokens` that the vocabulary has."""
        found = map(self._tokenizer.token_to_id, tokens)
        return {token_id for token_id in found if token_id is not None}

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """How the vocabulary spells each token."""
        return [self._tokenizer.id_to_token(token) or "" for token in ids]

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that one token stands for, of a special one its name; None if unknown."""
        if token_id not in self._bytes:
            self._bytes[token_id] = self._bytes_of(token_id)
        return self._bytes[token_id]

    def _bytes_of(self, token_id: int) -> bytes | None:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._added:
            return None if token is None else token.encode()
        return token_bytes(token, self._is_byte_level)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _plain(self) -> Tokenizer:
        """A second instance, made when first needed, to which special tokens are just text."""
        tokenizer = Tokenizer.from_str(self._definition)
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        return tokenizer


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """Tokenizer, chat template and stop ids of a model folder.

    Special tokens are made to match raw text only: where one is `normalized`, a normaliser could
    turn look-alike letters of a user into it.
    """
    definition = _read_json(folder / "tokenizer.json")
    definition |= {"truncation": None, "padding": None}
    for token in definition.get("added_tokens", []):
        if token.get("special"):
            token["normalized"] = False
    names = _special_names(folder)
    source = find_template(folder)
    template = None if source is None else ChatTemplate(source, names)
    ids = {token["content"]: token["id"] for token in definition.get("added_tokens", [])}
    end = ids.get(names.get("eos_token", ""))
    stop_ids = sorted({*_configured_stop_ids(folder), *([] if end is None else [end])})
    return ChatTokenizer(json.dumps(definition), template, stop_ids, _model_vocab_size(folder))


def _configured_stop_ids(folder: Path) -> list[int]:
    """`eos_token_id` of generation_config.json, else of config.json: a number or a list."""
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        if value is not None:
            return value if isinstance(value, list) else [value]
    return []


def _model_vocab_size(folder: Path) -> int | None:
    """`vocab_size` of config.json, that of a multimodal model being one level down."""
    config = _read_json(folder / "config.json")
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def _special_names(folder: Path) -> dict[str, str]:
    """The variables `bos_token`, `eos_token`, ... that templates use."""
    config = _read_json(folder / "special_tokens_map.json")
    config |= _read_json(folder / "tokenizer_config.json")
    names = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            names[key] = value
    return names


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return content
