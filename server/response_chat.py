"""A response request as the chat completion request that means the same.

All rules about messages, tools and formats are chat's. Its complaints are told in the words of the
request that was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .answering import validated
from .chat_schemas import ChatCompletionRequest
from .errors import ApiError, renamed
from .parameters import Parameters
from .response_schemas import FORMAT_NAMES, ReasoningOptions, ResponseRequest, TextOptions
from .response_tools import tool_choice_in_chat
from .response_turns import Turns
from .unsupported import unknown_names

_SHARED = {
    *Parameters.model_fields,
    *("chat_template_kwargs", "include_reasoning", "parallel_tool_calls", "top_logprobs"),
}
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    **FORMAT_NAMES,
}


class ChatForm:
    """The chat completion request that means the same. Raises `ApiError` 400."""

    def __init__(self, request: ResponseRequest, body: dict[str, object]) -> None:
        turns = Turns(request.instructions, request.input)
        tools = {f"tools.{at}.function": f"tools.{at}" for at in range(len(request.tools or []))}
        self._names = _NAMES | turns.names | tools
        shared = {name: body[name] for name in _SHARED if name in body}
        own = {"messages": turns.messages} | _translated(request)
        if request.wants_logprobs and request.stream_interval is None:
            # A delta for each token, so that it is certain whose text is the message's.
            own["stream_interval"] = 1
        with self.own_words():
            self.request = validated(ChatCompletionRequest, shared | own)
            self.request.check()
            unknown_names(self.request.extras())  # raises for what chat would have to ignore

    def own_words(self) -> AbstractContextManager[None]:
        """What chat refuses is refused in the words of the response request."""
        return told_as(self._names)


@contextmanager
def told_as(names: Mapping[str, str]) -> Iterator[None]:
    """Complaints about parameters of these names are told with their other names."""
    try:
        yield
    except ApiError as error:
        raise renamed(error, names) from None


def _translated(request: ResponseRequest) -> dict[str, Any]:
    text, reasoning = request.text or TextOptions(), request.reasoning or ReasoningOptions()
    return {
        "max_completion_tokens": request.max_output_tokens,
        "logprobs": request.wants_logprobs,
        "tools": None if request.tools is None else [tool.in_chat() for tool in request.tools],
        "tool_choice": tool_choice_in_chat(request.tool_choice),
        "response_format": None if text.format is None else text.format.in_chat(),
        "verbosity": text.verbosity,
        "reasoning_effort": reasoning.effort,
    }
