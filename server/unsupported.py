"""Nothing is silent: parameters that are known but not honoured are refused unless neutral.

Three kinds of names beside the honoured ones: `NEUTRAL` lists parameters that would change the
output, each with the values that ask for nothing; `BOOKKEEPING` never changes the output; all other
names are unknown, ignored, and reported to the client and the log, or refused where the server is
strict.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from .errors import invalid, unsupported
from .request_body import is_plain_name

logger = logging.getLogger(__name__)

NEUTRAL: dict[str, list[object]] = {
    # OpenAI
    "audio": [],
    "function_call": ["none", "auto"],
    "functions": [[]],
    "modalities": [["text"]],
    "moderation": [],
    "prediction": [],
    "reasoning_effort": ["none"],
    "store": [False],
    "tool_choice": ["none", "auto"],
    "tools": [[]],
    "verbosity": ["medium"],
    "web_search_options": [],
    # vLLM, SGLang, llama.cpp
    "add_generation_prompt": [True],
    "add_special_tokens": [False],
    "allowed_token_ids": [],
    "bad_words": [[]],
    "best_of": [1],
    "chat_template": [],
    "chat_template_kwargs": [{}],
    "continue_final_message": [False],
    "documents": [[]],
    "echo": [False],
    "guided_whitespace_pattern": [],
    "include_reasoning": [True],
    "include_stop_str_in_output": [False],
    "length_penalty": [1],
    "logits_processors": [[]],
    "prompt_logprobs": [],
    "return_token_ids": [False],
    "skip_special_tokens": [True],
    "suffix": [""],
    "thinking_token_budget": [],
    "truncate_prompt_tokens": [],
    "typical_p": [1],
    "use_beam_search": [False],
}
BOOKKEEPING = {
    "client_metadata",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
}
MESSAGE_NEUTRAL: dict[str, list[object]] = {
    "annotations": [[]],
    "audio": [],
    "function_call": [],
}
STREAM_NEUTRAL: dict[str, list[object]] = {
    "include_obfuscation": [False],
}
FORMAT_NEUTRAL: dict[str, list[object]] = {"schema": []}  # llama.cpp's; ours is json_schema.schema
STRUCTURED_NEUTRAL: dict[str, list[object]] = {
    "disable_additional_properties": [False],
    "disable_any_whitespace": [False],
    "whitespace_pattern": [],
}
MAX_REPORTED = 32
IGNORED_HEADER = "x-falcon-ignored-params"


class Extra(NamedTuple):
    """Fields at one place of a request that its schema does not know.

    `prefix` leads to them; `neutral` are the known ones among them, with values that ask for
    nothing.
    """

    prefix: str
    fields: Mapping[str, object] | None
    neutral: Mapping[str, list[object]]


def check_extras(extras: Iterable[Extra], is_strict: bool) -> dict[str, str]:
    """Headers that tell the client what will be ignored. Only names safe to repeat are told.

    Raises `ApiError` 400 naming the first parameter that must not be ignored; with `is_strict` none
    may be.
    """
    unknown = [name for name in unknown_names(extras) if name not in BOOKKEEPING]
    names = [name for name in unknown if is_plain_name(name)][:MAX_REPORTED]
    if unknown and is_strict:
        raise invalid(
            "The request has parameters that this server does not know"
            + (f", the first is '{names[0]}'." if names else "."),
            names[0] if names else None,
        )
    if not names:
        return {}
    logger.info("ignored parameters: %s", ", ".join(names))
    return {IGNORED_HEADER: ", ".join(names)}


def unknown_names(extras: Iterable[Extra]) -> list[str]:
    """Names of all fields that mean something to their sender alone, each once.

    Raises `ApiError` 400 naming the first parameter that must not be ignored.
    """
    return list(dict.fromkeys(name for extra in extras for name in _unknown(extra)))


def _unknown(extra: Extra) -> Iterator[str]:
    for name, value in (extra.fields or {}).items():
        if value is None:
            continue
        if name not in extra.neutral:
            yield extra.prefix + name
        elif not any(_is_same(value, harmless) for harmless in extra.neutral[name]):
            raise unsupported(extra.prefix + name, _in_words(extra.neutral[name]))


def _is_same(value: object, other: object) -> bool:
    """Equality of JSON, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _in_words(values: list[object]) -> str:
    return " or ".join([*(json.dumps(value) for value in values), "null"])
