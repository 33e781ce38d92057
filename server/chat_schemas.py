"""What a chat completion request may say beside the parameters that all endpoints share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from .errors import invalid
from .parameters import INT32_MAX, MAX_TOP_LOGPROBS, Parameters
from .predictions import Prediction
from .prompt_schemas import ChatPrompt
from .structured import FormattedParameters
from .unsupported import Extra


class ChatCompletionRequest(ChatPrompt, FormattedParameters, Parameters):
    """`include_reasoning` false leaves the thoughts out of the reply, as in vLLM."""

    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None
    include_reasoning: bool | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def has_prediction(self) -> bool:
        return self.prediction is not None

    @property
    def continues_text(self) -> bool:
        return self.continue_final_message is True

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise invalid("'top_logprobs' is only allowed with 'logprobs': true.", "top_logprobs")
        self.check_prompt()

    def extras(self) -> Iterator[Extra]:
        yield from super().extras()
        yield from self.prompt_extras()
        if self.prediction is not None:
            yield Extra("prediction.", self.prediction.model_extra, {})
