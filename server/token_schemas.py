"""What may be asked about tokens, in vLLM's words: a text's, a conversation's, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from .errors import invalid, unsupported
from .prompt_schemas import ChatPrompt
from .strict import Strict, sent_as
from .unsupported import NEUTRAL, Extra


class TokenizeTextRequest(Strict):
    """`prompt` is a raw text."""

    model_config = ConfigDict(json_schema_extra={"required": ["prompt"]})

    model: str | None = None
    prompt: Annotated[str | None, sent_as(str)] = None
    add_special_tokens: bool | None = None
    add_generation_prompt: Annotated[bool | None, sent_as(None)] = None
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Raises `ApiError` 400 where parameters contradict each other."""
        if self.prompt is None:
            raise invalid("Send either 'prompt' or 'messages'.", "prompt")
        if self.add_generation_prompt is not None:
            raise invalid("'add_generation_prompt' needs 'messages'.", "add_generation_prompt")

    def extras(self) -> Iterator[Extra]:
        """All fields that no schema knows, with what of them may be ignored."""
        yield Extra("", self.model_extra, NEUTRAL)


class TokenizeChatRequest(ChatPrompt):
    """A conversation, which becomes the prompt that a chat completion has."""

    model: str | None = None
    prompt: Annotated[str | None, sent_as(None)] = None
    add_special_tokens: Annotated[bool | None, sent_as(Literal[False] | None)] = None
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Raises `ApiError` 400 where parameters contradict each other."""
        if self.prompt is not None:
            raise invalid("Send either 'prompt' or 'messages'.", "prompt")
        if self.add_special_tokens:
            raise unsupported("add_special_tokens", "false with 'messages'")
        self.check_prompt()

    def extras(self) -> Iterator[Extra]:
        """All fields that no schema knows, with what of them may be ignored."""
        yield Extra("", self.model_extra, NEUTRAL)
        yield from self.prompt_extras()


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]

    def extras(self) -> Iterator[Extra]:
        """All fields that no schema knows."""
        yield Extra("", self.model_extra, {})
