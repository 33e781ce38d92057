"""What a chat completion request may say: types, ranges and limits of every parameter honoured.

Strict: no bool becomes an int, no "2" becomes a 2. Parameters that would have to be ignored are in
`unsupported.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_MESSAGES = 512
MAX_CONTENT_PARTS = 64
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
INT32_MAX = 2**31 - 1
_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}", re.ASCII)


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


def _bias_by_id(bias: object) -> object:
    """Biases by token id: JSON's keys are text, so the ids come as decimal digits."""
    biases = {} if bias is None else bias
    if (
        not isinstance(biases, dict)
        or len(biases) > MAX_BIASES
        or not all(map(_is_bias, biases.items()))
    ):
        raise PydanticCustomError(
            "logit_bias",
            "Logit_bias must be an object of at most {count} entries from a token id in decimal "
            "digits to a number from -{bias} to {bias}",
            {"count": MAX_BIASES, "bias": MAX_BIAS},
        )
    return {int(token): float(value) for token, value in biases.items()}


def _is_bias(entry: tuple[object, object]) -> bool:
    token, value = entry
    if not isinstance(token, str) or _TOKEN_ID.fullmatch(token) is None:
        return False
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -MAX_BIAS <= value <= MAX_BIAS


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_text_parts)]


class StreamOptions(_Strict):
    include_usage: bool | None = None


class SpeculativeOptions(_Strict):
    enabled: bool | None = None


class ChatCompletionRequest(_Strict):
    """The honoured parameters. Null means the default, as everywhere in OpenAI's API.

    What OpenAI does not define (top_k, min_p, repetition_penalty, min_tokens, ignore_eos,
    stop_token_ids) means what it means to vLLM; `speculative` is ours, and changes no token.
    """

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
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, max_length=MAX_STOP_TOKENS
    )
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_bias_by_id)] = {}
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    speculative: SpeculativeOptions | None = None

    @property
    def token_limit(self) -> int | None:
        """The client's own limit on new tokens; None is the rest of the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None is no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def is_speculative(self) -> bool:
        return self.speculative is None or self.speculative.enabled is not False

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True
