"""What a response request may say beside the parameters that all endpoints share.

Null means the default. What chat completions know too (messages, tools, formats) is only looked at
here as far as its shape differs: `response_chat.py` hands it to chat's own rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .answering import validated
from .chat_schemas import ChatCompletionRequest
from .errors import invalid, unsupported
from .parameters import INT32_MAX, MAX_TOP_LOGPROBS, Parameters
from .prompt_schemas import ReasoningEffort
from .response_input import AnyItem, SentInput, read_items
from .response_tools import FunctionTool, SentToolChoice, check_tool_choice
from .strict import Strict, sent_as
from .structured import Document, FormatName
from .unsupported import NEUTRAL, Extra

LOGPROBS: Final = "message.output_text.logprobs"
Includable = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
_Metadata = (  # as it is sent
    Annotated[
        dict[
            Annotated[str, Field(max_length=MAX_METADATA_KEY)],
            Annotated[str, Field(max_length=MAX_METADATA_VALUE)],
        ],
        Field(max_length=MAX_METADATA),
    ]
    | None
)

# What chat alone has is not ignored either: its names mean something, and something else here.
_CHATS_OWN = ChatCompletionRequest.model_fields.keys() - Parameters.model_fields.keys()
RESPONSE_NEUTRAL: dict[str, list[object]] = {
    **NEUTRAL,
    **{name: [] for name in _CHATS_OWN},
    "background": [False],
    "context_management": [[]],
    "conversation": [],
    "image": [],
    "previous_response_id": [],
    "prompt": [],
}
# Chat's names of what TextFormat holds.
FORMAT_NAMES = {"response_format": "text.format", "response_format.json_schema": "text.format"}
REASONING_NEUTRAL: dict[str, list[object]] = {
    "context": ["auto"],
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


class TextFormat(Strict):
    """Flat where chat's is nested; chat's rules judge it."""

    type: Annotated[str, sent_as(Literal["text", "json_object", "json_schema"])]
    name: FormatName | None = None
    description: str | None = None
    json_schema: Annotated[object, sent_as(Document | None)] = Field(None, alias="schema")
    strict: bool | None = None

    def in_chat(self) -> dict[str, object]:
        is_nested = self.type == "json_schema"
        return {"type": self.type} | ({"json_schema": self._own} if is_nested else self._own)

    def echo(self) -> dict[str, object]:
        """Of a format that chat's rules accepted."""
        is_nested = self.type == "json_schema"
        own = self._own | {"strict": bool(self.strict)} if is_nested else {}
        return {"type": self.type} | own

    @property
    def _own(self) -> dict[str, object]:
        """What beside the type was sent."""
        fields = {
            "name": self.name,
            "description": self.description,
            "schema": self.json_schema,
            "strict": self.strict,
        }
        return {name: value for name, value in fields.items() if value is not None}


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: Annotated[object, sent_as(Literal["medium"] | None)] = None


class ReasoningOptions(Strict):
    effort: Annotated[object, sent_as(ReasoningEffort | None)] = None


class ResponseRequest(Parameters):
    neutral: ClassVar[Mapping[str, list[object]]] = RESPONSE_NEUTRAL

    input: Annotated[list[AnyItem], sent_as(SentInput)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Annotated[
        object, BeforeValidator(check_tool_choice, json_schema_input_type=SentToolChoice)
    ] = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[object, sent_as(dict[str, Any] | None)] = None
    include_reasoning: Annotated[object, sent_as(bool | None)] = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["disabled"] | None = None
    store: bool | None = None
    metadata: Annotated[
        dict[str, str] | None, BeforeValidator(_metadata, json_schema_input_type=_Metadata)
    ] = None
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
        self._check_shared()
        if self.top_logprobs and not self.wants_logprobs:
            raise invalid(
                f"'top_logprobs' is only allowed with '{LOGPROBS}' in 'include'.", "top_logprobs"
            )

    def _check_shared(self) -> None:
        """What there is no place for in a response, or in its events."""
        if (self.model_extra or {}).get("response_format") is not None:
            raise invalid("Here 'response_format' is 'text.format'.", "response_format")
        if self.num_choices > 1:
            raise unsupported("n", "1 or null")
        refused = {
            "speculative.trace": self.wants_trace,
            "stream_options.continuous_usage_stats": self.wants_usage_always,
            "timings_per_token": self.timings_per_token,
        }
        for param, is_wanted in refused.items():
            if is_wanted:
                raise unsupported(param, "false or null")

    def extras(self) -> Iterator[Extra]:
        yield from super().extras()
        if self.text is not None:
            yield Extra("text.", self.text.model_extra, {})
            if self.text.format is not None:
                yield Extra("text.format.", self.text.format.model_extra, {})
        if self.reasoning is not None:
            yield Extra("reasoning.", self.reasoning.model_extra, REASONING_NEUTRAL)
        for index, item in enumerate(self.input):
            yield Extra(f"input.{index}.", item.model_extra, {})
        for index, tool in enumerate(self.tools or []):
            yield Extra(f"tools.{index}.", tool.model_extra, {})
