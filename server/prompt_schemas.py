"""What the prompt of a chat is made of, wherever a request says it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .chat_messages import ChatMessage, SentMessage, check_messages
from .chat_tools import (
    MAX_TOOLS,
    SentToolChoice,
    Tool,
    ToolChoice,
    check_tools,
    extras_of_tools,
    parse_tool_choice,
)
from .errors import invalid
from .strict import Strict, sent_as
from .unsupported import Extra

MAX_MESSAGES = 512

SentMessages = Annotated[list[SentMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ChatPrompt(Strict):
    """`add_generation_prompt`, `continue_final_message` and `chat_template_kwargs` mean what they
    mean to vLLM.
    """

    messages: Annotated[
        list[ChatMessage],
        Field(min_length=1, max_length=MAX_MESSAGES),
        sent_as(SentMessages),
    ]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[
        ToolChoice | None,
        BeforeValidator(parse_tool_choice, json_schema_input_type=SentToolChoice),
    ] = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def choice_of_tools(self) -> ToolChoice:
        return self.tool_choice or ToolChoice("auto" if self.tools else "none")

    @property
    def offered_tools(self) -> list[Tool]:
        """Those that the model is told of: none where it must not call any."""
        return [] if self.choice_of_tools.mode == "none" else self.tools or []

    @property
    def callable_tools(self) -> list[Tool]:
        """Those of them that it may call."""
        names, tools = self.choice_of_tools.names, self.offered_tools
        return [tool for tool in tools if names is None or tool.function.name in names]

    def check_prompt(self) -> None:
        """Raises `ApiError` 400 where fields contradict each other."""
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

    def prompt_extras(self) -> Iterator[Extra]:
        """Fields inside messages and tools that no schema knows."""
        for index, message in enumerate(self.messages):
            yield from message.extras(f"messages.{index}")
        yield from extras_of_tools(self.tools or [])
