"""The API's routes as `/openapi.json` lists them: what each takes, answers, and refuses.

The handlers read bodies by their own strict rules, so FastAPI cannot tell; tests hold this list
against the application's routes and its answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .chat_schemas import ChatCompletionRequest
from .completion_schemas import CompletionRequest
from .completion_types import Completion, CompletionChunk
from .reply_types import (
    ChatCompletion,
    ChatCompletionChunk,
    Error,
    Model,
    ModelList,
    Status,
    Tokens,
    TokenText,
    Version,
)
from .response_event_types import ResponseEvent
from .response_schemas import REASONING_NEUTRAL, ResponseRequest
from .response_types import Response
from .token_schemas import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from .unsupported import (
    FORMAT_NEUTRAL,
    MESSAGE_NEUTRAL,
    NEUTRAL,
    STREAM_NEUTRAL,
    STRUCTURED_NEUTRAL,
)

ANY = (400, 403, 414, 431, 500)  # what each route may answer
MODEL = (404, 503)  # what each route may that needs the model
WORK = (*MODEL, 408, 413)  # with a body
QUEUE = (*WORK, 429, 504)  # and the engine

ERRORS = {
    400: "The request is malformed, invalid, or asks for what this server does not do: `param` "
    "names the field.",
    401: "There is no API key, or not one of this server's.",
    403: "The request comes from a web page of an origin that is not allowed.",
    404: "The model does not exist.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    414: "The request line is too long.",
    429: "Too many requests are waiting: `Retry-After` says when to come back.",
    431: "The headers are too large or too many.",
    500: "The server or its engine failed on this request.",
    503: "The engine is loading, being replaced, or about to stop.",
    504: "The request did not start, or end, within its time.",
}


@dataclass(frozen=True, slots=True)
class Described:
    """A route. `event` is the JSON of an event's data where it may stream, `media_type` that of
    a reply that is text.
    """

    method: str
    path: str
    summary: str
    reply: Any = None
    request: Any = None
    event: Any = None
    media_type: str = "application/json"
    errors: tuple[int, ...] = ()


ROUTES = (
    Described(
        "post",
        "/v1/chat/completions",
        "Answer a conversation.",
        ChatCompletion,
        ChatCompletionRequest,
        ChatCompletionChunk | Error,
        errors=QUEUE,
    ),
    Described(
        "post",
        "/v1/completions",
        "Continue texts or token ids.",
        Completion,
        CompletionRequest,
        CompletionChunk | Error,
        errors=QUEUE,
    ),
    Described(
        "post",
        "/v1/responses",
        "Answer items of a conversation, keeping nothing.",
        Response,
        ResponseRequest,
        ResponseEvent,
        errors=QUEUE,
    ),
    Described(
        "post",
        "/tokenize",
        "The token ids of a text, or of a conversation's prompt.",
        Tokens,
        TokenizeChatRequest | TokenizeTextRequest,
        errors=WORK,
    ),
    Described(
        "post", "/detokenize", "The text of token ids.", TokenText, DetokenizeRequest, errors=WORK
    ),
    Described("get", "/v1/models", "The names of the served model.", ModelList, errors=MODEL),
    Described("get", "/v1/models/{name}", "One of these names.", Model, errors=MODEL),
    Described("get", "/livez", "Whether only a restart would help.", Status, errors=(503,)),
    Described("get", "/readyz", "Whether requests are welcome.", Status, errors=(503,)),
    Described("get", "/health", "Whether the engine makes progress.", Status, errors=(503,)),
    Described("get", "/ping", "The same.", Status, errors=(503,)),
    Described("post", "/ping", "The same.", Status, errors=(503,)),
    Described("get", "/version", "The server's version.", Version),
    Described("get", "/metrics", "Metrics for Prometheus.", str, media_type="text/plain"),
)

REQUESTS = (
    ChatCompletionRequest,
    CompletionRequest,
    ResponseRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
    DetokenizeRequest,
)
# Fields that may be sent if they ask for nothing, by the schema that holds them.
NEUTRAL_FIELDS: Mapping[str, Mapping[str, list[object]]] = {
    "ChatCompletionRequest": ChatCompletionRequest.neutral,
    "CompletionRequest": CompletionRequest.neutral,
    "ResponseRequest": ResponseRequest.neutral,
    "TokenizeChatRequest": NEUTRAL,
    "TokenizeTextRequest": NEUTRAL,
    "AssistantMessage": MESSAGE_NEUTRAL,
    "SpokenMessage": MESSAGE_NEUTRAL,
    "ToolMessage": MESSAGE_NEUTRAL,
    "ReasoningOptions": REASONING_NEUTRAL,
    "ResponseFormat": FORMAT_NEUTRAL,
    "StreamOptions": STREAM_NEUTRAL,
    "StructuredOutputs": STRUCTURED_NEUTRAL,
}
