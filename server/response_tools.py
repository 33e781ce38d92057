"""Tools of a response request: flat where chat's are nested, and functions only.

Only the shape is looked at here; what a function may be is chat's rule.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from .chat_tools import MAX_TOOLS, FunctionName
from .strict import Strict, sent_as

Json = dict[str, Any]


class FunctionTool(Strict):
    type: Literal["function"]
    name: Annotated[object, sent_as(FunctionName)]
    description: Annotated[object, sent_as(str | None)] = None
    parameters: Annotated[object, sent_as(Json | None)] = None
    strict: Annotated[object, sent_as(bool | None)] = None

    def in_chat(self) -> Json:
        return {"type": "function", "function": self._fields()}

    def echo(self) -> Json:
        """Of a tool that chat's rules accepted."""
        return {"type": "function"} | self._fields() | {"strict": bool(self.strict)}

    def _fields(self) -> Json:
        return {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        }


class FunctionByName(Strict):
    """A function that must be called."""

    type: Literal["function"]
    name: FunctionName


class AllowedFunctions(Strict):
    """Functions that alone may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionByName], Field(min_length=1, max_length=MAX_TOOLS)]


# What `tool_choice` may be as it is sent.
SentToolChoice = Literal["none", "auto", "required"] | FunctionByName | AllowedFunctions | None


def check_tool_choice(choice: object) -> object:
    """The choice as it was sent, if it has one of OpenAI's forms for functions."""
    match choice:
        case None | "none" | "auto" | "required":
            return choice
        case {"type": "function"} if _is_function(choice):
            return choice
        case {"type": "allowed_tools", "mode": "auto" | "required", "tools": [*tools], **rest}:
            if not rest and all(map(_is_function, tools)):
                return choice
    raise PydanticCustomError(
        "tool_choice",
        "It must be 'none', 'auto', 'required', {{\"type\": \"function\", \"name\": ...}} or "
        '{{"type": "allowed_tools", "mode": "auto" or "required", "tools": [...]}} of functions',
    )


def _is_function(tool: object) -> bool:
    match tool:
        case {"type": "function", "name": str(), **rest}:
            return not rest
    return False


def tool_choice_in_chat(choice: object) -> object:
    """Of a choice that has one of the forms."""
    match choice:
        case {"type": "function", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": [*tools]}:
            allowed = {"mode": mode, "tools": [tool_choice_in_chat(tool) for tool in tools]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice
