"""Structured output as OpenAI, vLLM, SGLang and llama.cpp ask for it, and the grammar it means.

At most one of these parameters may be there: each of them says what the whole answer looks like.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from engine.grammar.regexes import GrammarError
from engine.grammar.sources import Kind, source_of
from engine.messages import Grammar

from .errors import ApiError, invalid
from .strict import Strict
from .unsupported import FORMAT_NEUTRAL, STRUCTURED_NEUTRAL, Extra


def _json_text(value: object) -> object:
    """A document as JSON text, whether it was sent as such or as what it says."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | bool):
        return json.dumps(value)
    raise PydanticCustomError(
        "document", "It must be an object, or a string that holds one in JSON"
    )


def _choices_text(value: object) -> object:
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return json.dumps(value)
    raise PydanticCustomError("choices", "It must be a list of strings")


Document = Annotated[
    str, BeforeValidator(_json_text, json_schema_input_type=str | dict[str, Any] | bool)
]
Choices = Annotated[str, BeforeValidator(_choices_text, json_schema_input_type=list[str])]


FormatName = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]


class JsonSchemaFormat(Strict):
    """`strict` and not mean the same here: the answer always validates."""

    name: FormatName
    text: Document = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Strict):
    """vLLM's. A list, an object or a string each; `json_object` is true or left out."""

    document: Document | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Document | None = None


class StructuredParameters(Strict):
    """What endpoints share; `response_format` is of those that call it so."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: Document | None = None  # vLLM, before structured_outputs
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    regex: str | None = None  # SGLang
    ebnf: str | None = None
    grammar: str | None = None  # llama.cpp
    json_schema: Document | None = None

    @property
    def format_of_response(self) -> ResponseFormat | None:
        return None

    def structured_extras(self) -> Iterator[Extra]:
        """Fields inside that no schema knows, with what of them may be ignored."""
        if (form := self.format_of_response) is not None:
            yield Extra("response_format.", form.model_extra, FORMAT_NEUTRAL)
            if form.json_schema is not None:
                yield Extra("response_format.json_schema.", form.json_schema.model_extra, {})
        if (outputs := self.structured_outputs) is not None:
            yield Extra("structured_outputs.", outputs.model_extra, STRUCTURED_NEUTRAL)


class FormattedParameters(StructuredParameters):
    response_format: ResponseFormat | None = None

    @property
    def format_of_response(self) -> ResponseFormat | None:
        return self.response_format


class Asked(NamedTuple):
    """A grammar, and the parameter that it came from."""

    param: str
    grammar: Grammar


_FLAT: dict[str, Kind] = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "ebnf",
    "regex": "regex",
    "ebnf": "ebnf",
    "grammar": "ebnf",
    "json_schema": "json_schema",
}
_NESTED: dict[str, tuple[str, Kind]] = {
    "document": ("json", "json_schema"),
    "regex": ("regex", "regex"),
    "choice": ("choice", "choice"),
    "grammar": ("grammar", "ebnf"),
    "structural_tag": ("structural_tag", "structural_tag"),
}


def asked_of(request: StructuredParameters) -> Asked | None:
    """The grammar that a request asks for. Raises `ApiError` 400 for more than one."""
    found = [*_from_format(request), *_from_outputs(request)]
    for name, kind in _FLAT.items():
        if (text := getattr(request, name)) is not None:
            found.append(Asked(name, Grammar(kind, text)))
    if len(found) > 1:
        first, second = found[0].param, found[1].param
        raise invalid(f"'{second}' is not allowed beside '{first}': send one of them.", second)
    return found[0] if found else None


def _from_format(request: StructuredParameters) -> Iterator[Asked]:
    form = request.format_of_response
    if form is None:
        return
    has_schema = form.json_schema is not None
    if has_schema != (form.type == "json_schema"):
        raise invalid(
            "'response_format.json_schema' must be sent with the type \"json_schema\", and only "
            "with it.",
            "response_format.json_schema",
        )
    if form.json_schema is not None:
        param = "response_format.json_schema.schema"
        yield Asked(param, Grammar("json_schema", form.json_schema.text))
    elif form.type == "json_object":
        yield Asked("response_format", Grammar("json_object"))


def _from_outputs(request: StructuredParameters) -> Iterator[Asked]:
    outputs = request.structured_outputs
    if outputs is None:
        return
    found = []
    for field, (name, kind) in _NESTED.items():
        if (text := getattr(outputs, field)) is not None:
            found.append(Asked(f"structured_outputs.{name}", Grammar(kind, text)))
    if outputs.json_object:
        found.append(Asked("structured_outputs.json_object", Grammar("json_object")))
    if len(found) != 1:
        names = ", ".join([*(name for name, _ in _NESTED.values()), "json_object"])
        raise invalid(
            f"'structured_outputs' must have exactly one of {names}.", "structured_outputs"
        )
    yield from found


async def check_asked(request: StructuredParameters) -> None:
    """Raises `ApiError` 400 for a grammar that will not be followed to the letter.

    In a thread: a large schema takes a while to walk.
    """
    if (asked := asked_of(request)) is not None:
        try:
            await asyncio.to_thread(source_of, asked.grammar.kind, asked.grammar.text)
        except GrammarError as error:
            raise unfit(str(error), asked.param) from None


def refused_by_engine(request: StructuredParameters, reason: str) -> ApiError:
    """What a client is told when the engine cannot follow its grammar, or that of its tools."""
    asked = asked_of(request)
    return unfit(reason, "tools" if asked is None else asked.param)


def unfit(reason: str, param: str) -> ApiError:
    return invalid(f"Invalid '{param}': {reason.rstrip('.')}.", param)
