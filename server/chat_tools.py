"""Tools of a chat request, and which of them the model may or must call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from pydantic_core import PydanticCustomError

from .errors import invalid
from .strict import Strict
from .unsupported import Extra

MAX_TOOLS = 128

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """No parameters are an empty list of them, as OpenAI says."""
        return self.parameters or {"type": "object", "properties": {}}


class Tool(Strict):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As Hugging Face's templates expect it. `strict` is for us, not for the model."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.schema_of_arguments
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`mode` is for the functions of these `names`, None being all; `is_named` if it is one."""

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None
    is_named: bool = False


class FunctionOfChoice(Strict):
    name: FunctionName


class FunctionChoice(Strict):
    """A function that must be called."""

    type: Literal["function"]
    function: FunctionOfChoice


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Strict):
    """Functions that alone may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


# What `tool_choice` may be as it is sent.
SentToolChoice = Literal["none", "auto", "required"] | FunctionChoice | AllowedToolsChoice | None


def parse_tool_choice(value: object) -> object:
    """OpenAI's four forms of `tool_choice` as one."""
    match value:
        case None:
            return None
        case "none" | "auto" | "required":
            return ToolChoice(value)
        case {"type": "function", "function": {"name": str(name), **rest}, **more}:
            if not rest and not more:
                return ToolChoice("required", (name,), is_named=True)
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*tools]}}:
            named = [parse_tool_choice(tool) for tool in tools]
            names = [n for tool in named if isinstance(tool, ToolChoice) for n in tool.names or ()]
            if mode in ("auto", "required") and 1 <= len(names) == len(tools) <= MAX_TOOLS:
                return ToolChoice(mode, tuple(names))
    raise PydanticCustomError(
        "tool_choice",
        "Tool_choice must be 'none', 'auto', 'required', "
        '{"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", '
        '"allowed_tools": {"mode": "auto" or "required", "tools": [{"type": "function", ...}]}}',
    )


def check_tools(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """Raises `ApiError` 400 for tools that contradict themselves, each other or the choice."""
    names = [tool.function.name for tool in tools]
    for index, tool in enumerate(tools):
        place = f"tools.{index}.function"
        if tool.function.name in names[:index]:
            raise invalid(f"'{place}.name' is the name of an earlier tool.", f"{place}.name")
        if (complaint := _complaint(tool.function.parameters or {})) is not None:
            raise invalid(f"'{place}.parameters' {complaint}.", f"{place}.parameters")
    if choice.mode == "required" and not tools:
        raise invalid("This 'tool_choice' is only allowed with 'tools'.", "tool_choice")
    if not set(choice.names or ()) <= set(names):
        raise invalid("'tool_choice' must name functions that 'tools' has.", "tool_choice")


def _complaint(schema: dict[str, Any]) -> str | None:
    """What keeps a JSON schema from describing arguments by name."""
    if schema.get("type", "object") != "object":
        return 'must be a JSON schema of {"type": "object"}'
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not all(map(_is_schema, properties.values())):
        return "must have an object of JSON schemas as its 'properties'"
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        return "must have a list of names as its 'required'"
    return None


def _is_schema(value: object) -> bool:
    return isinstance(value, dict | bool)


def extras_of_tools(tools: Sequence[Tool]) -> Iterator[Extra]:
    for index, tool in enumerate(tools):
        yield Extra(f"tools.{index}.", tool.model_extra, {})
        yield Extra(f"tools.{index}.function.", tool.function.model_extra, {})
