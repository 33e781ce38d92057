"""Tools of a response request: flat where chat's are nested, and functions only.

Only the shape is looked at here; what a function may be is chat's rule.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic_core import PydanticCustomError

from .strict import Strict

Json = dict[str, Any]


class FunctionTool(Strict):
    type: Literal["function"]
    name: object
    description: object = None
    parameters: object = None
    strict: object = None

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
