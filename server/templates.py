"""The model's own chat template, rendered as Hugging Face's tokenizers render it, but sandboxed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What a template can raise over messages that it was not written for.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)


class TemplateRefused(Exception):
    """The template does not take these messages; the text is for the client and quotes no input."""


class BadTemplate(Exception):
    """The model folder's template does not parse."""


class ChatTemplate:
    """Turns messages into the prompt text that the model was trained on, specials included."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._source = source
        self._variables = variables
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise BadTemplate(f"the chat template does not parse: {error}") from error

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt, ending where the assistant begins. Raises `TemplateRefused`.

        A template that does not know the role `developer` gets it as `system`.
        """
        try:
            return self._template.render(
                messages=[self._in_known_role(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._variables,
            )
        except _TEMPLATE_FAILURES as error:
            raise TemplateRefused(self._reason(str(error))) from None

    def _in_known_role(self, message: Mapping[str, str]) -> dict[str, str]:
        role = message["role"]
        if role == "developer" and "developer" not in self._source:
            role = "system"
        return {"role": role, "content": message["content"]}

    def _reason(self, text: str) -> str:
        """The template's own words where they are a constant of its source, else ours."""
        if text and text in self._source:
            return f"The model's chat template refuses these messages: {text}"
        return "The model's chat template refuses these messages or their order of roles."


def find_template(folder: Path) -> str | None:
    """The template source of a model folder; the one called "default" where there are several."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    source = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    if isinstance(source, list):
        by_name = {entry["name"]: entry["template"] for entry in source}
        source = by_name.get("default")
    return source if isinstance(source, str) else None


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
