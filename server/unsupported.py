"""Nothing is silent: parameters that are known but not honoured are refused unless neutral.

Three kinds of names beside the honoured ones: `NEUTRAL` lists parameters that would change the
output, each with the values that ask for nothing; `BOOKKEEPING` never changes the output; all other
names are unknown, ignored, and reported to the client and the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from .errors import ApiError, unsupported
from .request_body import is_plain_name
from .schemas import ChatCompletionRequest

NEUTRAL: dict[str, list[object]] = {
    # OpenAI
    "audio": [],
    "function_call": ["none", "auto"],
    "functions": [[]],
    "modalities": [["text"]],
    "moderation": [],
    "prediction": [],
    "reasoning_effort": ["none"],
    "response_format": [{"type": "text"}],
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
    "ebnf": [],
    "echo": [False],
    "grammar": [],
    "guided_choice": [],
    "guided_grammar": [],
    "guided_json": [],
    "guided_regex": [],
    "include_stop_str_in_output": [False],
    "length_penalty": [1],
    "logits_processors": [[]],
    "prompt_logprobs": [],
    "regex": [],
    "return_token_ids": [False],
    "skip_special_tokens": [True],
    "structured_outputs": [],
    "suffix": [""],
    "truncate_prompt_tokens": [],
    "typical_p": [1],
    "use_beam_search": [False],
}
BOOKKEEPING = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
}
MESSAGE_NEUTRAL: dict[str, list[object]] = {
    "annotations": [[]],
    "audio": [],
    "function_call": [],
    "tool_call_id": [],
    "tool_calls": [[]],
}
STREAM_NEUTRAL: dict[str, list[object]] = {
    "continuous_usage_stats": [False],
    "include_obfuscation": [False],
}
MAX_REPORTED = 32


def ignored_parameters(request: ChatCompletionRequest) -> list[str]:
    """Names of fields that were sent, mean something to their sender, and will be ignored.

    Raises `ApiError` 400 naming the first parameter that must not be ignored. Only names that are
    safe to repeat are returned.
    """
    names = list(_unknown(request.model_extra, NEUTRAL, ""))
    if request.stream_options is not None:
        if not request.stream:
            raise ApiError(
                400, "'stream_options' is only allowed with 'stream': true.", param="stream_options"
            )
        names += _unknown(request.stream_options.model_extra, STREAM_NEUTRAL, "stream_options.")
    if request.speculative is not None:
        names += _unknown(request.speculative.model_extra, {}, "speculative.")
    if request.top_logprobs and not request.logprobs:
        raise ApiError(
            400, "'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs"
        )
    for index, message in enumerate(request.messages):
        names += _unknown(message.model_extra, MESSAGE_NEUTRAL, f"messages.{index}.")
    return [name for name in names if name not in BOOKKEEPING and is_plain_name(name)][
        :MAX_REPORTED
    ]


def _unknown(
    fields: Mapping[str, object] | None, neutral: Mapping[str, list[object]], prefix: str
) -> Iterator[str]:
    for name, value in (fields or {}).items():
        if value is None:
            continue
        if name not in neutral:
            yield prefix + name
        elif not any(_is_same(value, harmless) for harmless in neutral[name]):
            raise unsupported(prefix + name, _in_words(neutral[name]))


def _is_same(value: object, other: object) -> bool:
    """Equality of JSON, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _in_words(values: list[object]) -> str:
    return " or ".join([*(json.dumps(value) for value in values), "null"])
