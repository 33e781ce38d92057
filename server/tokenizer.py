"""Text to token ids and back, from a model folder; imports no torch, hence no transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.token_bytes import is_byte_level, token_bytes

from .templates import ChatTemplate, Conversation, Template, TemplateMaker, find_template
from .user_text import HiddenTexts


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads; in `text` hidden texts are markers."""

    ids: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class EncodedText:
    """Ids of a text, and which of them were added around it."""

    ids: list[int]
    is_added: list[bool]


class ChatTokenizer:
    """Encodes conversations so that only the template writes special tokens, never a user.

    How: before rendering, every special token's text inside what the user sent is hidden
    (`user_text.py`). What the template wrote is encoded with special tokens on, what was hidden
    with them off. A conversation without such text, that is nearly every one, is encoded in one go
    and gives exactly the ids of Hugging Face's `apply_chat_template`.
    """

    def __init__(
        self,
        definition: str,
        template: Template | None,
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
        self._is_byte_level = is_byte_level(json.loads(definition))
        longest_first = sorted(filter(None, specials.values()), key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode_chat(self, conversation: Conversation, max_characters: int = 2**31) -> Prompt:
        """Raises `templates.TemplateRefused`, and `PromptTooLong` above so many characters."""
        assert self.template is not None, "the route refuses a model without a template"
        hidden = HiddenTexts(self._specials)
        messages = [hidden.hide(dict(message)) for message in conversation.messages]
        if conversation.continues_last:
            messages[-1]["content"] = hidden.mark_end(messages[-1]["content"])
        safe = replace(
            conversation,
            messages=messages,
            tools=[hidden.hide(dict(tool)) for tool in conversation.tools],
            variables=hidden.hide(dict(conversation.variables)),
        )
        rendered = self.template.render(safe, max_characters)
        if conversation.continues_last:
            rendered = hidden.before_mark(rendered)
        ids = []
        for text, is_hidden in hidden.pieces(rendered):
            ids += self.encode_plain(text) if is_hidden else self._encode(text)
        return Prompt(ids, rendered)

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

    def token_text(self, token_id: int) -> str:
        """One token by itself, to be shown: U+FFFD for a part of a character."""
        return (self.token_bytes(token_id) or b"").decode("utf-8", errors="replace")

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing stands for a special token."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

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


def load_tokenizer(
    folder: Path,
    make_template: TemplateMaker = ChatTemplate,
    template_file: Path | None = None,
) -> ChatTokenizer:
    """Tokenizer, chat template (or that of `template_file`) and stop ids of a model folder.

    Special tokens are made to match raw text only: where one is `normalized`, a normaliser could
    turn look-alike letters of a user into it.
    """
    definition = _read_json(folder / "tokenizer.json")
    definition |= {"truncation": None, "padding": None}
    for token in definition.get("added_tokens", []):
        if token.get("special"):
            token["normalized"] = False
    names = _special_names(folder)
    source, tool_source = find_template(folder), find_template(folder, "tool_use")
    if template_file is not None:
        source, tool_source = template_file.read_text("utf-8"), None
    template = None if source is None else make_template(source, names, tool_source)
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
