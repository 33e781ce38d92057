"""The items of a response request's `input`: messages, calls with their outputs, and reasoning.

Items of earlier answers come back as they were sent, so what only describes them (ids, status) is
known here and has no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .answering import validated
from .chat_messages import MAX_CONTENT_PARTS, CallId
from .chat_tools import FunctionName
from .errors import invalid
from .prompt_schemas import MAX_MESSAGES
from .strict import Strict, sent_as

MAX_ITEMS = 4 * MAX_MESSAGES  # calls and thoughts of one turn are items, but one message


def _texts(*kinds: str) -> Callable[[object], list[str]]:
    """A validator: content as the texts of its parts, whichever of the two forms was sent."""

    def texts_of(content: object) -> list[str]:
        parts = [{"type": kinds[0], "text": content}] if isinstance(content, str) else content
        texts = [_text_of(part, kinds) for part in parts] if isinstance(parts, list) else []
        if not 1 <= len(texts) <= MAX_CONTENT_PARTS or None in texts:
            raise PydanticCustomError(
                "content",
                "It must be a string or a list of 1 to {limit} parts of type {kinds}",
                {"limit": MAX_CONTENT_PARTS, "kinds": " or ".join(f"'{kind}'" for kind in kinds)},
            )
        return [text for text in texts if text is not None]

    return texts_of


def _text_of(part: object, kinds: tuple[str, ...]) -> str | None:
    if not isinstance(part, dict) or part.get("type") not in kinds:
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None


def _thoughts(content: object) -> object:
    """OpenAI's own items may have no thoughts to show, or an empty list of them."""
    return _texts("reasoning_text")(content) if content else None


class InputTextPart(Strict):
    type: Literal["input_text", "output_text"]
    text: str


class ReasoningTextPart(Strict):
    type: Literal["reasoning_text"]
    text: str


# What content, and thoughts, may be as they are sent.
_Content = str | Annotated[list[InputTextPart], Field(min_length=1, max_length=MAX_CONTENT_PARTS)]
_Thoughts = str | Annotated[list[ReasoningTextPart], Field(max_length=MAX_CONTENT_PARTS)] | None
_Texts = Annotated[
    list[str],
    BeforeValidator(_texts("input_text", "output_text"), json_schema_input_type=_Content),
]


class Item(Strict):
    id: str | None = None
    status: str | None = None


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _Texts
    phase: str | None = None


class ReasoningItem(Item):
    """Its summary is about the thoughts, not of them. Without `content` it says nothing."""

    type: Literal["reasoning"]
    summary: list[object] | None = None
    content: Annotated[
        list[str] | None, BeforeValidator(_thoughts, json_schema_input_type=_Thoughts)
    ] = None


class FunctionCallItem(Item):
    type: Literal["function_call"]
    call_id: Annotated[str, sent_as(CallId)]
    name: Annotated[str, sent_as(FunctionName)]
    arguments: str


class FunctionCallOutputItem(Item):
    type: Literal["function_call_output"]
    call_id: Annotated[str, sent_as(CallId)]
    output: _Texts


AnyItem = MessageItem | ReasoningItem | FunctionCallItem | FunctionCallOutputItem
# What `input` may be as it is sent.
SentInput = str | Annotated[list[AnyItem], Field(min_length=1, max_length=MAX_ITEMS)]
_SCHEMAS: dict[object, type[AnyItem]] = {
    "message": MessageItem,
    "reasoning": ReasoningItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
}


def read_items(value: object) -> list[AnyItem]:
    """The items of `input`; a string is a message of the user's. Raises `ApiError` 400."""
    if isinstance(value, str):
        return [MessageItem.model_validate({"role": "user", "content": value})]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ITEMS:
        raise invalid(f"'input' must be a string or a list of 1 to {MAX_ITEMS} items.", "input")
    return [_read_item(item, f"input.{index}") for index, item in enumerate(value)]


def _read_item(item: object, at: str) -> AnyItem:
    if not isinstance(item, dict):
        raise invalid(f"'{at}' must be an object.", at)
    kind = item.get("type") or "message"
    schema = _SCHEMAS.get(kind) if isinstance(kind, str) else None
    if schema is None:
        allowed = ", ".join(f"'{name}'" for name in _SCHEMAS)
        raise invalid(
            f"'{at}.type' must be one of {allowed}. This server keeps nothing between requests and "
            "runs no tools of its own.",
            f"{at}.type",
        )
    return validated(schema, item, f"{at}.")
