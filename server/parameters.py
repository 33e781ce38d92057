"""What every generating request may say: types, ranges and limits of the parameters honoured.

Null means the default, as everywhere in OpenAI's API. Parameters that would have to be ignored are
in `unsupported.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .errors import invalid
from .strict import Strict
from .structured import StructuredParameters, asked_of
from .unsupported import NEUTRAL, STREAM_NEUTRAL, Extra

MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
MAX_BIAS = 100
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_STREAM_INTERVAL = 1024
INT32_MAX = 2**31 - 1
_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}", re.ASCII)
# What the two fields may hold as they are sent.
_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_Stops = _Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS)] | None
_TokenId = Annotated[str, Field(pattern=f"^({_TOKEN_ID.pattern})$")]
_Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
_Biases = Annotated[dict[_TokenId, _Bias], Field(max_length=MAX_BIASES)] | None


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


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SpeculativeOptions(Strict):
    enabled: bool | None = None
    stats: bool | None = None
    trace: bool | None = None


class Parameters(StructuredParameters):
    """The parameters that all endpoints share.

    What OpenAI does not define (top_k, min_p, repetition_penalty, min_tokens, ignore_eos,
    stop_token_ids) means what it means to vLLM, `timings_per_token` what it means to llama.cpp;
    `speculative` is ours, and changes no token. `stream_interval` N cuts a stream at the first
    token and then at every N-th, whatever the steps.
    """

    neutral: ClassVar[Mapping[str, list[object]]] = NEUTRAL

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: Annotated[int, Field(ge=1, le=MAX_STREAM_INTERVAL)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[list[str], BeforeValidator(_list_of_stops, json_schema_input_type=_Stops)] = (
        Field(default_factory=list)
    )
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, max_length=MAX_STOP_TOKENS
    )
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: Annotated[
        dict[int, float], BeforeValidator(_bias_by_id, json_schema_input_type=_Biases)
    ] = Field(default_factory=dict)
    speculative: SpeculativeOptions | None = None
    timings_per_token: bool | None = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def is_speculative(self) -> bool:
        return self.speculative is None or self.speculative.enabled is not False

    @property
    def has_prediction(self) -> bool:
        """Whether the client sent a guess of the output."""
        return False

    @property
    def wants_stats(self) -> bool:
        return self.speculative is not None and self.speculative.stats is True

    @property
    def wants_trace(self) -> bool:
        return self.speculative is not None and self.speculative.trace is True

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def wants_usage_always(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    @property
    def token_limit(self) -> int | None:
        """The client's own limit on new tokens; None is `default_tokens`."""
        raise NotImplementedError

    @property
    def num_logprobs(self) -> int | None:
        """How many alternatives to report beside each token; None is no log-probabilities."""
        raise NotImplementedError

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for the prompt's own tokens."""
        return None

    @property
    def default_tokens(self) -> int:
        """How many new tokens there may be, if the context has room, without a client's limit."""
        return INT32_MAX

    @property
    def num_prompts(self) -> int:
        """How many prompts are answered, each with `num_choices`."""
        return 1

    @property
    def continues_text(self) -> bool:
        """Whether the answer's text goes on from the prompt's own."""
        return False

    def check(self) -> None:
        """Raises `ApiError` 400 where parameters contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' is only allowed with 'stream': true.", "stream_options")
        if self.wants_trace and not self.stream:
            raise invalid(
                "'speculative.trace' is only allowed with 'stream': true.", "speculative.trace"
            )
        if self.wants_usage_always and not self.wants_usage_chunk:
            param = "stream_options.continuous_usage_stats"
            raise invalid(f"'{param}' is only allowed with 'include_usage': true.", param)
        asked_of(self)

    def extras(self) -> Iterator[Extra]:
        """All fields that no schema knows, with what of them may be ignored."""
        yield Extra("", self.model_extra, self.neutral)
        if self.stream_options is not None:
            yield Extra("stream_options.", self.stream_options.model_extra, STREAM_NEUTRAL)
        if self.speculative is not None:
            yield Extra("speculative.", self.speculative.model_extra, {})
        yield from self.structured_extras()
