"""The JSON that this server answers, as types: what `/openapi.json` tells its readers.

The replies themselves are plain dicts, made where their parts are known; tests hold them against
these types, to the last key. A key that is not required is left out rather than null.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

Count = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]
Byte = Annotated[int, Field(ge=0, le=255)]


class ErrorDetail(TypedDict):
    """What went wrong: a sentence, and words for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class PromptTokensDetails(TypedDict):
    cached_tokens: Count


class CompletionTokensDetails(TypedDict):
    """Tokens of a prediction are told to requests that sent one."""

    reasoning_tokens: Count
    accepted_prediction_tokens: NotRequired[Count]
    rejected_prediction_tokens: NotRequired[Count]


class Usage(TypedDict):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class SpeculativeMetrics(TypedDict):
    """vLLM's words; draft tokens are nodes of trees."""

    mean_acceptance_length: Annotated[float, Field(ge=1)]
    draft_acceptance_rate: Annotated[float, Field(ge=0, le=1)]
    acceptance_histogram: list[Count]
    num_spec_steps: Count
    num_accepted_draft_tokens: Count
    num_draft_tokens: Count
    num_spec_tokens: Count


class Metrics(TypedDict):
    """For requests with `speculative.stats`."""

    speculative_decoding: SpeculativeMetrics


class Timings(TypedDict):
    """llama.cpp's words, for requests with `speculative.stats` or `timings_per_token`."""

    cache_n: Count
    prompt_n: Count
    prompt_ms: Milliseconds
    prompt_per_token_ms: Milliseconds
    prompt_per_second: Annotated[float, Field(ge=0)]
    predicted_n: Count
    predicted_ms: Milliseconds
    predicted_per_token_ms: Milliseconds
    predicted_per_second: Annotated[float, Field(ge=0)]
    draft_n: Count
    draft_n_accepted: Count


class TraceToken(TypedDict):
    text: str
    source: Literal["drafted", "predicted", "bonus"]


class TraceTree(TypedDict):
    """Nodes in order; a root's parent is -1."""

    tokens: list[str]
    parents: list[Annotated[int, Field(ge=-1)]]
    root: Count
    path: list[Count]


class Trace(TypedDict):
    """One step of the engine, for streams with `speculative.trace`."""

    index: Count
    tokens: list[TraceToken]
    tree: TraceTree
    provisional: Count
    passes: Count
    draft_ms: Milliseconds
    verify_ms: Milliseconds


class TopLogprob(TypedDict):
    """A token that is no text has no bytes."""

    token: str
    logprob: Annotated[float, Field(le=0)]
    bytes: list[Byte] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class CalledWith(TypedDict):
    name: str
    arguments: str


class FunctionCall(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledWith


class AnswerMessage(TypedDict):
    """`reasoning` and `reasoning_content` are two names of one thing."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[Annotated[list[FunctionCall], Field(min_length=1)]]


class ChatChoice(TypedDict):
    index: Count
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    choices: Annotated[list[ChatChoice], Field(min_length=1)]
    usage: Usage
    metrics: NotRequired[Metrics]
    timings: NotRequired[Timings]


class FunctionPiece(TypedDict):
    """The name comes once, with the call's id; then pieces of the arguments."""

    name: NotRequired[str]
    arguments: str


class CallPiece(TypedDict):
    index: Count
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionPiece


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[Annotated[list[CallPiece], Field(min_length=1)]]


class ChatChunkChoice(TypedDict):
    index: Count
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(TypedDict):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    metrics: NotRequired[Metrics]
    timings: NotRequired[Timings]
    falcon: NotRequired[Trace]


class Model(TypedDict):
    """`root` is the model's own name, of which the others are aliases."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    root: str
    max_model_len: Count


class ModelList(TypedDict):
    object: Literal["list"]
    data: Annotated[list[Model], Field(min_length=1)]


class Tokens(TypedDict):
    count: Count
    max_model_len: Count
    tokens: list[Count]
    token_strs: NotRequired[list[str]]


class TokenText(TypedDict):
    prompt: str


class Version(TypedDict):
    version: str


class Status(TypedDict):
    status: str
