"""The JSON of a response and of its events, as types: what `/openapi.json` tells its readers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from .chat_tools import FunctionName
from .prompt_schemas import ReasoningEffort
from .reply_types import Byte, Count, Metrics, Timings
from .response_tools import AllowedFunctions, FunctionByName

Place = Literal["in_progress", "completed", "incomplete"]
Logprob = Annotated[float, Field(le=0)]


class PartTopLogprob(TypedDict):
    token: str
    bytes: list[Byte]
    logprob: Logprob


class PartLogprob(PartTopLogprob):
    top_logprobs: list[PartTopLogprob]


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)]
    logprobs: list[PartLogprob]


class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


class MessageOutput(TypedDict):
    id: str
    type: Literal["message"]
    status: Place
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningOutput(TypedDict):
    id: str
    type: Literal["reasoning"]
    status: Place
    summary: Annotated[list[Any], Field(max_length=0)]
    content: list[ReasoningText]


class CallOutput(TypedDict):
    id: str
    type: Literal["function_call"]
    status: Place
    call_id: str
    name: FunctionName
    arguments: str


OutputItem = MessageOutput | ReasoningOutput | CallOutput


class CachedTokens(TypedDict):
    cached_tokens: Count
    cache_write_tokens: Count


class ReasoningTokens(TypedDict):
    reasoning_tokens: Count


class ResponseUsage(TypedDict):
    input_tokens: Count
    input_tokens_details: CachedTokens
    output_tokens: Count
    output_tokens_details: ReasoningTokens
    total_tokens: Count


class FailureReason(TypedDict):
    code: Literal["server_error"]
    message: str


class CutReason(TypedDict):
    reason: Literal["max_output_tokens"]


class AppliedReasoning(TypedDict):
    effort: ReasoningEffort | None
    summary: None


class AppliedFormat(TypedDict):
    """All but `type` are there for the type "json_schema" alone."""

    type: Literal["text", "json_object", "json_schema"]
    name: NotRequired[str]
    description: NotRequired[str]
    schema: NotRequired[dict[str, Any] | str | bool]
    strict: NotRequired[bool]


class AppliedText(TypedDict):
    format: AppliedFormat
    verbosity: Literal["medium"]


class OfferedTool(TypedDict):
    type: Literal["function"]
    name: FunctionName
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class Response(TypedDict):
    """`usage` is there once the response is complete. Nothing is ever stored."""

    id: str
    object: Literal["response"]
    created_at: Count
    completed_at: Count | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: FailureReason | None
    incomplete_details: CutReason | None
    output: list[OutputItem]
    usage: NotRequired[ResponseUsage]
    background: Literal[False]
    instructions: str | None
    max_output_tokens: Count | None
    max_tool_calls: Count | None
    metadata: dict[str, str]
    model: str
    parallel_tool_calls: bool
    previous_response_id: None
    prompt_cache_key: NotRequired[str]
    reasoning: AppliedReasoning
    safety_identifier: NotRequired[str]
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: Annotated[float, Field(ge=0, le=2)]
    text: AppliedText
    tool_choice: Literal["none", "auto", "required"] | FunctionByName | AllowedFunctions
    tools: list[OfferedTool]
    top_logprobs: Annotated[int, Field(ge=0, le=20)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    truncation: Literal["disabled"]
    user: NotRequired[str]
    metrics: NotRequired[Metrics]
    timings: NotRequired[Timings]
