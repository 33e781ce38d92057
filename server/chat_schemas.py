"""What a chat completion request may say beside the parameters that all endpoints share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .chat_messages import ChatMessage, check_messages
from .chat_tools import (
    MAX_TOOLS,
    Tool,
    ToolChoice,
    check_tools,
    extras_of_tools,
    parse_tool_choice,
)
from .errors import invalid
from .parameters import INT32_MAX, MAX_TOP_LOGPROBS, Parameters
from .predictions import Prediction
from .unsupported import Extra

MAX_MESSAGES = 512

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ChatCompletionRequest(Parameters):
    """`add_generation_prompt`, `continue_final_message`, `chat_template_kwargs` and
    `include_reasoning` mean what they mean to vLLM.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[ToolChoice | None, BeforeValidator(parse_tool_choice)] = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

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
    def choice_of_tools(self) -> ToolChoice:
        return self.tool_choice or ToolChoice("auto" if self.tools else "none")

    @property
    def offered_tools(self) -> list[Tool]:
        """Those that the model is told of: none where it must not call any."""
        return [] if self.choice_of_tools.mode == "none" else self.tools or []

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise invalid("'top_logprobs' is only allowed with 'logprobs': true.", "top_logprobs")
        check_messages(self.messages)
        check_tools(self.tools or [], self.choice_of_tools)
        if self.continue_final_message:
            self._check_continuation()

    def _check_continuation(self) -> None:
        last, param = self.messages[-1], "continue_final_message"
        if self.add_generation_prompt:
            raise invalid(f"'{param}' and 'add_generation_prompt' exclude each other.", param)
        if last.role != "assistant" or not last.content or last.tool_calls:
            raise invalid(
                f"'{param}' needs a last message of the role 'assistant' with content and without "
                "tool calls.",
                param,
            )

    def extras(self) -> Iterator[Extra]:
        yield from super().extras()
        for index, message in enumerate(self.messages):
            yield from message.extras(f"messages.{index}")
        yield from extras_of_tools(self.tools or [])
        if self.prediction is not None:
            yield Extra("prediction.", self.prediction.model_extra, {})
