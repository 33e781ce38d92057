"""What may be asked about tokens, in vLLM's words: a text's, a conversation's, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from .chat_messages import ChatMessage, check_messages
from .chat_schemas import MAX_MESSAGES
from .errors import invalid, unsupported
from .parameters import Strict
from .unsupported import NEUTRAL, Extra


class TokenizeRequest(Strict):
    """Either `prompt`, a raw text, or `messages`, which the chat template renders."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)] | None = (
        None
    )
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Raises `ApiError` 400 where parameters contradict each other."""
        if (self.prompt is None) == (self.messages is None):
            raise invalid("Send either 'prompt' or 'messages'.", "prompt")
        if self.messages is not None and self.add_special_tokens:
            raise unsupported("add_special_tokens", "false with 'messages'")
        if self.messages is None and self.add_generation_prompt is not None:
            raise invalid("'add_generation_prompt' needs 'messages'.", "add_generation_prompt")
        check_messages(self.messages or [])

    def extras(self) -> Iterator[Extra]:
        """All fields that no schema knows, with what of them may be ignored."""
        yield Extra("", self.model_extra, NEUTRAL)
        for index, message in enumerate(self.messages or []):
            yield from message.extras(f"messages.{index}")


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]

    def extras(self) -> Iterator[Extra]:
        """All fields that no schema knows."""
        yield Extra("", self.model_extra, {})
