"""What a chat completion request may say beside the parameters that all endpoints share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .errors import invalid
from .parameters import INT32_MAX, MAX_TOP_LOGPROBS, Parameters, Strict
from .unsupported import MESSAGE_NEUTRAL, Extra

MAX_MESSAGES = 512
MAX_CONTENT_PARTS = 64


def _join_text_parts(content: object) -> object:
    """Content as one string: text parts are joined by newlines, as vLLM does."""
    if isinstance(content, str):
        return content
    texts = [_text_of(part) for part in content] if isinstance(content, list) else []
    if not 1 <= len(texts) <= MAX_CONTENT_PARTS or None in texts:
        raise PydanticCustomError(
            "content",
            "Content must be a string or a list of 1 to {limit} parts of type 'text'",
            {"limit": MAX_CONTENT_PARTS},
        )
    return "\n".join(text for text in texts if text is not None)


def _text_of(part: object) -> str | None:
    if not isinstance(part, dict) or part.get("type") != "text":
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_text_parts)]


class Prediction(Strict):
    """The client's guess of the answer."""

    type: Literal["content"]
    content: Annotated[str, BeforeValidator(_join_text_parts)]


class ChatCompletionRequest(Parameters):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    prediction: Prediction | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise invalid("'top_logprobs' is only allowed with 'logprobs': true.", "top_logprobs")

    def extras(self) -> Iterator[Extra]:
        yield from super().extras()
        for index, message in enumerate(self.messages):
            yield Extra(f"messages.{index}.", message.model_extra, MESSAGE_NEUTRAL)
        if self.prediction is not None:
            yield Extra("prediction.", self.prediction.model_extra, {})
