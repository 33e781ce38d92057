"""The messages of a chat: their fields by role, and what a template gets of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from .chat_tools import MAX_TOOLS, FunctionName
from .errors import ApiError, invalid
from .request_body import parse_object
from .strict import Strict
from .unsupported import MESSAGE_NEUTRAL, Extra

MAX_CONTENT_PARTS = 64
MAX_NAME_CHARS = 64
MAX_ID_CHARS = 256


class TextPart(Strict):
    """Content's only kind of part."""

    type: Literal["text"]
    text: str


# What content may be as it is sent.
Said = str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_CONTENT_PARTS)]
Content = Said | None


def join_text_parts(content: object) -> object:
    """Content as one string: text parts are joined by newlines, as vLLM does."""
    if content is None or isinstance(content, str):
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


def _no_function_role(role: object) -> object:
    if role == "function":
        raise PydanticCustomError(
            "role", "The role 'function' is not supported: send the role 'tool' and a tool_call_id"
        )
    return role


Role = Literal["system", "developer", "user", "assistant", "tool"]
CallId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
# OpenAI's rule for the names of participants.
Name = Annotated[str, StringConstraints(pattern=r"^[^\s<|\\/>]+$", max_length=MAX_NAME_CHARS)]


class CalledFunction(Strict):
    name: FunctionName
    arguments: str


class MadeCall(Strict):
    """A call that the assistant made earlier."""

    id: CallId
    type: Literal["function"]
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """With the arguments as an object, which templates expect, where they are one."""
        arguments: object = self.function.arguments
        with suppress(ApiError):
            arguments = parse_object(self.function.arguments.encode())
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


class ChatMessage(Strict):
    role: Annotated[Role, BeforeValidator(_no_function_role, json_schema_input_type=Role)]
    content: Annotated[
        str | None, BeforeValidator(join_text_parts, json_schema_input_type=Content)
    ] = None
    name: Name | None = None
    tool_calls: Annotated[list[MadeCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: CallId | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def thoughts(self) -> str | None:
        """What the assistant thought, by either name."""
        return self.reasoning or self.reasoning_content

    def check(self, place: str) -> None:
        """Raises `ApiError` 400 for fields that the role does not have, or lacks."""
        is_assistant, is_tool = self.role == "assistant", self.role == "tool"
        for field in ("tool_calls", "refusal", "reasoning", "reasoning_content"):
            if getattr(self, field) and not is_assistant:
                raise _misplaced(f"{place}.{field}", "assistant")
        if self.tool_call_id is not None and not is_tool:
            raise _misplaced(f"{place}.tool_call_id", "tool")
        if self.tool_call_id is None and is_tool:
            raise invalid(
                f"'{place}.tool_call_id' is required: the id of the call that this answers.",
                f"{place}.tool_call_id",
            )
        if self.content is None and not (self.tool_calls or self.thoughts or self.refusal):
            raise invalid(
                f"'{place}.content' is required: a string or a list of text parts. Only assistant "
                "messages with 'tool_calls' may go without it.",
                f"{place}.content",
            )
        if self.reasoning and self.reasoning_content not in (None, "", self.reasoning):
            raise invalid(
                f"'{place}.reasoning' and 'reasoning_content' are names of one thing: send one.",
                f"{place}.reasoning",
            )

    def for_template(self, called: dict[str, str]) -> dict[str, Any]:
        """As Hugging Face's templates expect it; `called` are the functions' names by call id."""
        message: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id
            message["name"] = self.name or called[self.tool_call_id or ""]
        elif self.name is not None:
            message["name"] = self.name
        if self.thoughts:
            message["reasoning"] = message["reasoning_content"] = self.thoughts
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return message

    def extras(self, place: str) -> Iterator[Extra]:
        yield Extra(f"{place}.", self.model_extra, MESSAGE_NEUTRAL)
        for index, call in enumerate(self.tool_calls or []):
            yield Extra(f"{place}.tool_calls.{index}.", call.model_extra, {})
            yield Extra(f"{place}.tool_calls.{index}.function.", call.function.model_extra, {})


class SpokenMessage(Strict):
    """What a message of these roles may hold as it is sent; the others follow."""

    role: Literal["system", "developer", "user"]
    content: Said
    name: Name | None = None


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: Content = None
    name: Name | None = None
    tool_calls: Annotated[list[MadeCall], Field(max_length=MAX_TOOLS)] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ToolMessage(Strict):
    role: Literal["tool"]
    content: Said
    tool_call_id: CallId
    name: Name | None = None


SentMessage = SpokenMessage | AssistantMessage | ToolMessage


def _misplaced(param: str, role: str) -> ApiError:
    return invalid(f"'{param}' is only allowed in messages of the role '{role}'.", param)


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """Raises `ApiError` 400 where a message is wrong, or answers a call that nobody made."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        place = f"messages.{index}"
        message.check(place)
        called |= {call.id for call in message.tool_calls or []}
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise invalid(
                f"'{place}.tool_call_id' must be the id of a call in the 'tool_calls' of an "
                "earlier assistant message.",
                f"{place}.tool_call_id",
            )


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Checked messages, as a template gets them."""
    called: dict[str, str] = {}
    written = []
    for message in messages:
        called |= {call.id: call.function.name for call in message.tool_calls or []}
        written.append(message.for_template(called))
    return written
