"""What a chat completion request may say: types, ranges and limits of every parameter honoured.

Strict: no bool becomes an int, no "2" becomes a 2. Parameters that would have to be ignored are in
`unsupported.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_MESSAGES = 512
MAX_CONTENT_PARTS = 64
MAX_STOPS = 4
MAX_STOP_CHARS = 256
INT32_MAX = 2**31 - 1


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


def _list_of_stops(stop: object) -> object:
    """Stop strings as a list, whichever of the two forms was sent."""
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    is_valid = (
        isinstance(stops, list)
        and len(stops) <= MAX_STOPS
        and all(isinstance(text, str) and 1 <= len(text) <= MAX_STOP_CHARS for text in stops)
    )
    if not is_valid:
        raise PydanticCustomError(
            "stop",
            "Stop must be a string or a list of at most {count} strings of 1 to {chars} characters",
            {"count": MAX_STOPS, "chars": MAX_STOP_CHARS},
        )
    return stops


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_text_parts)]


class StreamOptions(_Strict):
    include_usage: bool | None = None


class ChatCompletionRequest(_Strict):
    """The honoured parameters. Null means the default, as everywhere in OpenAI's API."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    stop: Annotated[list[str], BeforeValidator(_list_of_stops)] = []
    n: Annotated[int, Field(ge=1, le=1)] | None = None

    @property
    def token_limit(self) -> int | None:
        """The client's own limit on new tokens; None is the rest of the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True
