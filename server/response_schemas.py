"""What a response request may say beside the parameters that all endpoints share.

Null means the default. What chat completions know too (messages, tools, formats) is only looked at
here as far as its shape differs: `response_chat.py` hands it to chat's own rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .answering import validated
from .errors import invalid, unsupported
from .parameters import INT32_MAX, MAX_TOP_LOGPROBS, Parameters, Strict
from .response_input import AnyItem, read_items
from .unsupported import NEUTRAL, Extra

LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512

RESPONSE_NEUTRAL: dict[str, list[object]] = NEUTRAL | {
    "background": [False],
    "context_management": [[]],
    "conversation": [],
    "image": [],
    "previous_response_id": [],
    "prompt": [],
    # chat's names for what has another name here
    "logprobs": [],
    "max_completion_tokens": [],
    "max_tokens": [],
    "messages": [],
}
TEXT_NEUTRAL: dict[str, list[object]] = {"verbosity": ["medium"]}
REASONING_NEUTRAL: dict[str, list[object]] = {
    "context": ["auto"],
    "effort": ["none"],
    "generate_summary": ["auto"],
    "mode": ["standard"],
    "summary": ["auto"],
}


def _metadata(value: object) -> object:
    """Checked in one go, because a complaint about one entry would repeat its key."""
    entries = {} if value is None else value
    is_valid = (
        isinstance(entries, dict)
        and len(entries) <= MAX_METADATA
        and all(len(key) <= MAX_METADATA_KEY for key in entries)
        and all(isinstance(text, str) for text in entries.values())
        and all(len(text) <= MAX_METADATA_VALUE for text in entries.values())
    )
    if not is_valid:
        raise PydanticCustomError(
            "metadata",
            "Metadata must be an object of at most {count} keys of up to {key} characters with "
            "strings of up to {value} characters",
            {"count": MAX_METADATA, "key": MAX_METADATA_KEY, "value": MAX_METADATA_VALUE},
        )
    return entries


class TextOptions(Strict):
    format: dict[str, object] | None = None


class ReasoningOptions(Strict):
    pass


class ResponseRequest(Parameters):
    neutral: ClassVar[Mapping[str, list[object]]] = RESPONSE_NEUTRAL

    input: list[AnyItem]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["disabled"] | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str] | None, BeforeValidator(_metadata)] = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @classmethod
    def read(cls, body: dict[str, object]) -> Self:
        """The request in a body. Raises `ApiError` 400."""
        return validated(cls, body | {"input": read_items(body.get("input"))})

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or [])

    def check(self) -> None:
        super().check()
        if self.num_choices > 1:
            raise unsupported("n", "1 or null")
        if self.top_logprobs and not self.wants_logprobs:
            raise invalid(
                f"'top_logprobs' is only allowed with '{LOGPROBS}' in 'include'.", "top_logprobs"
            )

    def extras(self) -> Iterator[Extra]:
        yield from super().extras()
        if self.text is not None:
            yield Extra("text.", self.text.model_extra, TEXT_NEUTRAL)
        if self.reasoning is not None:
            yield Extra("reasoning.", self.reasoning.model_extra, REASONING_NEUTRAL)
        for index, item in enumerate(self.input):
            yield Extra(f"input.{index}.", item.model_extra, {})
