"""A response request as the chat completion request that means the same.

All rules about messages, tools and formats are chat's. Its complaints are told in the words of the
request that was sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .answering import validated
from .chat_schemas import ChatCompletionRequest
from .errors import ApiError, renamed
from .parameters import Parameters
from .response_schemas import ResponseRequest
from .response_turns import Conversation

_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
}


class ChatForm:
    """The chat completion request that means the same. Raises `ApiError` 400."""

    def __init__(self, request: ResponseRequest, body: dict[str, object]) -> None:
        conversation = Conversation(request.instructions, request.input)
        self._names = _NAMES | conversation.names
        shared = {name: body[name] for name in Parameters.model_fields if name in body}
        with self.own_words():
            self.request = validated(
                ChatCompletionRequest, shared | _chat_fields(request, conversation.messages)
            )
            self.request.check()

    @contextmanager
    def own_words(self) -> Iterator[None]:
        """What chat refuses is refused in the words of the response request."""
        try:
            yield
        except ApiError as error:
            raise renamed(error, self._names) from None


def _chat_fields(request: ResponseRequest, messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "messages": messages,
        "max_completion_tokens": request.max_output_tokens,
        "logprobs": request.wants_logprobs,
        "top_logprobs": request.top_logprobs,
    }
