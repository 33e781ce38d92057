"""The model's own chat template, rendered as Hugging Face's tokenizers render it, but sandboxed.

The sandbox bounds neither time nor memory: the server renders in `template_process.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What a client's variables must not replace, beside the names of special tokens and functions.
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")


class TemplateRefused(Exception):
    """The template does not take these messages; the text is for the client and quotes no input."""


class BadTemplate(Exception):
    """The model folder's template does not parse."""


class PromptTooLong(Exception):
    """The template wrote more than any prompt of this model can be."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template is given, as Hugging Face's templates know it.

    `variables` are the client's own. `continues_last` ends the prompt where the content of the last
    message ends, so that the model goes on with it.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continues_last: bool = False


class Template(Protocol):
    """What turns messages into a prompt: its text, the variables it reads, those it must be given.

    `render` raises `TemplateRefused`, and `PromptTooLong` above `limit` characters.
    """

    source: str
    variables: set[str]
    reserved: set[str]

    def render(self, conversation: Conversation, limit: int) -> str: ...


TemplateMaker = Callable[[str, Mapping[str, str], str | None], Template]


class ChatTemplate:
    """Turns messages into the prompt text that the model was trained on, specials included.

    Some models have a template of its own for conversations with tools, `tool_source`.
    """

    def __init__(
        self, source: str, variables: Mapping[str, str], tool_source: str | None = None
    ) -> None:
        self.source = source if tool_source is None else f"{source}\n{tool_source}"
        self._given = variables
        environment = _environment()
        self.reserved = {*_RESERVED, *variables, *environment.globals}
        try:
            self._template = environment.from_string(source)
            self._tool_template = environment.from_string(tool_source or source)
            self.variables = meta.find_undeclared_variables(environment.parse(self.source))
        except (jinja2.TemplateError, MemoryError, RecursionError) as error:
            raise BadTemplate(f"the chat template does not parse: {error}") from error

    def render(self, conversation: Conversation, limit: int) -> str:
        """The prompt. Raises `TemplateRefused`, and `PromptTooLong` above `limit` characters.

        A template that does not know the role `developer` gets it as `system`.
        """
        template = self._tool_template if conversation.tools else self._template
        pieces, length = [], 0
        try:
            for piece in template.generate(self._names(conversation)):
                pieces.append(piece)
                length += len(piece)
                if length > limit:
                    break
        except Exception as error:  # noqa: BLE001  # a template can raise anything
            what = "messages or tools" if conversation.tools else "messages"
            raise TemplateRefused(self._reason(str(error), what)) from None
        if length > limit:
            raise PromptTooLong
        return "".join(pieces)

    def _names(self, conversation: Conversation) -> dict[str, Any]:
        """All that the template can refer to; the client's variables replace none of it."""
        return {
            **conversation.variables,
            **self._given,
            "messages": [self._in_known_role(message) for message in conversation.messages],
            "add_generation_prompt": conversation.add_generation_prompt,
            "tools": list(conversation.tools) or None,
            "documents": None,
        }

    def _in_known_role(self, message: Mapping[str, Any]) -> dict[str, Any]:
        is_known = message["role"] != "developer" or "developer" in self.source
        return {**message} if is_known else {**message, "role": "system"}

    def _reason(self, text: str, what: str) -> str:
        """The template's own words where they are a constant of its source, else ours."""
        if text and text in self.source:
            return f"The model's chat template refuses these {what}: {text}"
        return f"The model's chat template refuses these {what} or their order of roles."


def find_template(folder: Path, name: str = "default") -> str | None:
    """The template source of a model folder; the one called `name` where there are several."""
    additional = folder / "additional_chat_templates" / f"{name}.jinja"
    file = folder / "chat_template.jinja" if name == "default" else additional
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    source = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    if isinstance(source, list):
        return {entry["name"]: entry["template"] for entry in source}.get(name)
    return source if isinstance(source, str) and name == "default" else None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body stands alone."""

    tags = {"generation"}  # noqa: RUF012  # jinja's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
