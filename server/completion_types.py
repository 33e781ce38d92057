"""The JSON of a text completion, as types: what `/openapi.json` tells its readers."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from .reply_types import Count, Metrics, Timings, Trace, Usage


class LegacyLogprobs(TypedDict):
    """One item a token; a prompt's first token has no log-probability."""

    tokens: list[str]
    token_logprobs: list[Annotated[float, Field(le=0)] | None]
    top_logprobs: list[dict[str, Annotated[float, Field(le=0)]] | None]
    text_offset: list[Count]


class CompletionChoice(TypedDict):
    index: Count
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: Annotated[list[CompletionChoice], Field(min_length=1)]
    usage: Usage
    metrics: NotRequired[Metrics]
    timings: NotRequired[Timings]


class CompletionChunkChoice(TypedDict):
    index: Count
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionChunk(TypedDict):
    """One event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage | None]
    metrics: NotRequired[Metrics]
    timings: NotRequired[Timings]
    falcon: NotRequired[Trace]
