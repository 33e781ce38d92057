"""From a request's parameters and prompt to what the engine is asked."""

from __future__ import annotations

import secrets

import msgspec

from engine.messages import SamplingParams, Submit
from engine.seeds import choice_seed

from .errors import context_length_exceeded, invalid, model_not_found
from .parameters import Parameters
from .served import ServedModel
from .structured import asked_of
from .tokenizer import ChatTokenizer

CHARS_PER_TOKEN_CAP = 8


def check_served(request: Parameters, served: ServedModel) -> None:
    """Raises `ApiError` unless the model asked for is served now."""
    if request.model not in served.names:
        raise model_not_found(served.names)
    served.engine.check_room()
    count, limit = request.num_prompts * request.num_choices, served.engine.max_requests
    if count > limit:
        raise invalid(f"This server runs at most {limit} completions at once, not {count}.", "n")


def check_characters(count: int, source: str, served: ServedModel) -> None:
    """Raises `ApiError` for a text too long to be worth tokenising."""
    limit = CHARS_PER_TOKEN_CAP * served.context_length
    if count > limit:
        raise context_length_exceeded(
            served.context_length,
            f"the length of your {source} is over {limit} characters. Please reduce it.",
            source,
        )


def submits(
    request: Parameters, prompt_ids: list[int], source: str, served: ServedModel, key: str
) -> list[Submit]:
    """One `Submit` for each choice, which differ in id and seed alone; `key` is whose they are.

    `source` is the parameter that the prompt came from. Raises `ApiError` for what the model cannot
    do. The engine's request ids are always our own.
    """
    asked = asked_of(request)
    first = Submit(
        request_id=secrets.token_hex(12),
        prompt_ids=prompt_ids,
        max_tokens=_token_budget(request, len(prompt_ids), source, served.context_length),
        sampling=sampling(request),
        stop_token_ids=_stop_token_ids(request, served.tokenizer),
        key=key,
        speculative=request.is_speculative,
        logprobs=request.num_logprobs,
        prompt_logprobs=request.num_prompt_logprobs,
        trace=request.wants_trace,
        grammar=None if asked is None else asked.grammar,
    )
    _check_ids(request, served.tokenizer.vocab_size)
    if first.sampling.min_tokens > first.max_tokens:
        raise invalid(
            f"'min_tokens' must be at most max_tokens, here {first.max_tokens}.", "min_tokens"
        )
    return [first, *(_choice(first, index) for index in range(1, request.num_choices))]


def _choice(first: Submit, index: int) -> Submit:
    seed = choice_seed(first.sampling.seed, index)
    sampling = msgspec.structs.replace(first.sampling, seed=seed)
    request_id = f"{first.request_id}-{index}"
    return msgspec.structs.replace(first, request_id=request_id, sampling=sampling)


def _stop_token_ids(request: Parameters, tokenizer: ChatTokenizer) -> list[int]:
    ends = [] if request.ignore_eos else tokenizer.stop_ids
    return sorted({*ends, *(request.stop_token_ids or [])})


def _check_ids(request: Parameters, vocab_size: int) -> None:
    """Raises `ApiError` where the request names a token that the model does not have."""
    named = {"logit_bias": request.logit_bias, "stop_token_ids": request.stop_token_ids or []}
    for param, ids in named.items():
        if max(ids, default=0) >= vocab_size:
            raise invalid(f"Token ids in '{param}' must be from 0 to {vocab_size - 1}.", param)


def _token_budget(request: Parameters, prompt: int, source: str, context: int) -> int:
    """How many tokens may be generated: the client's limit, or what is usual and fits."""
    limit = request.token_limit
    if prompt + (limit != 0) > context:
        raise context_length_exceeded(
            context,
            f"your {source} resulted in {prompt} tokens. Please reduce the length of the {source}.",
            source,
        )
    if limit is not None and prompt + limit > context:
        raise context_length_exceeded(
            context,
            f"you requested {prompt + limit} tokens ({prompt} in the {source}, {limit} in the "
            f"completion). Please reduce the length of the {source} or completion.",
            source,
        )
    return min(context - prompt, request.default_tokens) if limit is None else limit


def sampling(request: Parameters) -> SamplingParams:
    """OpenAI's defaults for what is missing; negative seeds are their two's complement."""
    seed = secrets.randbits(64) if request.seed is None else request.seed % 2**64
    return SamplingParams(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        seed=seed,
        logit_bias=request.logit_bias,
        min_tokens=request.min_tokens or 0,
        repetition_penalty=1.0
        if request.repetition_penalty is None
        else request.repetition_penalty,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
    )
