"""The events of a streamed response, as types: what `/openapi.json` tells its readers."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from .reply_types import Count, ErrorDetail
from .response_types import Logprob, OutputItem, OutputText, ReasoningText, Response


class Event(TypedDict):
    sequence_number: Count


class ResponseChanged(Event):
    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response


class ItemChanged(Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: Count
    item: OutputItem


class InItem(Event):
    item_id: str
    output_index: Count


class PartChanged(InItem):
    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: Count
    part: OutputText | ReasoningText


class EventTopLogprob(TypedDict):
    token: str
    logprob: Logprob


class EventLogprob(EventTopLogprob):
    top_logprobs: list[EventTopLogprob]


class TextDelta(InItem):
    type: Literal["response.output_text.delta"]
    content_index: Count
    delta: str
    logprobs: list[EventLogprob]


class TextDone(InItem):
    type: Literal["response.output_text.done"]
    content_index: Count
    text: str
    logprobs: list[EventLogprob]


class ReasoningDelta(InItem):
    type: Literal["response.reasoning_text.delta"]
    content_index: Count
    delta: str


class ReasoningDone(InItem):
    type: Literal["response.reasoning_text.done"]
    content_index: Count
    text: str


class ArgumentsDelta(InItem):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(InItem):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class Failed(Event):
    """Its fields twice: where OpenAI's schema has them, and where its clients look."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None
    error: ErrorDetail


ResponseEvent = (
    ResponseChanged
    | ItemChanged
    | PartChanged
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | Failed
)
