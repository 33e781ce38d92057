"""From a chat request to what the engine is asked: everything that can refuse it happens here."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

import msgspec

from engine.client import EngineClient
from engine.messages import SamplingParams, Submit
from engine.seeds import choice_seed

from .errors import (
    context_length_exceeded,
    engine_unavailable,
    invalid,
    model_not_found,
)
from .metrics import Metrics
from .schemas import ChatCompletionRequest
from .templates import TemplateRefused
from .tokenizer import ChatTokenizer

CHARS_PER_TOKEN_CAP = 8


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the routes serve: one model, under one name, by one engine."""

    name: str
    created: int
    context_length: int
    tokenizer: ChatTokenizer
    engine: EngineClient
    metrics: Metrics


async def prepare(
    request: ChatCompletionRequest, served: ServedModel, key: str = ""
) -> list[Submit]:
    """Everything that can refuse the request, before the first byte of an answer.

    One `Submit` for each choice, which differ in id and seed alone; `key` is whose they are. Raises
    `ApiError`. The engine's request ids are always our own.
    """
    if request.model != served.name:
        raise model_not_found(served.name)
    if not served.engine.is_alive:
        raise engine_unavailable()
    prompt_ids = await _encode(request, served)
    if not prompt_ids:
        raise invalid("The messages render to an empty prompt.", "messages")
    first = Submit(
        request_id=secrets.token_hex(12),
        prompt_ids=prompt_ids,
        max_tokens=_token_budget(request, len(prompt_ids), served.context_length),
        sampling=_sampling(request),
        stop_token_ids=_stop_token_ids(request, served.tokenizer),
        key=key,
        speculative=request.is_speculative,
        logprobs=request.num_logprobs,
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


def _stop_token_ids(request: ChatCompletionRequest, tokenizer: ChatTokenizer) -> list[int]:
    ends = [] if request.ignore_eos else tokenizer.stop_ids
    return sorted({*ends, *(request.stop_token_ids or [])})


def _check_ids(request: ChatCompletionRequest, vocab_size: int) -> None:
    """Raises `ApiError` where the request names a token that the model does not have."""
    named = {"logit_bias": request.logit_bias, "stop_token_ids": request.stop_token_ids or []}
    for param, ids in named.items():
        if max(ids, default=0) >= vocab_size:
            raise invalid(f"Token ids in '{param}' must be from 0 to {vocab_size - 1}.", param)


async def _encode(request: ChatCompletionRequest, served: ServedModel) -> list[int]:
    """Prompt ids, in a thread: the tokenizer releases the GIL, and other streams go on."""
    if served.tokenizer.template is None:
        raise invalid("The served model has no chat template, so it cannot chat.", "messages")
    limit = CHARS_PER_TOKEN_CAP * served.context_length
    if sum(len(message.content) for message in request.messages) > limit:
        raise context_length_exceeded(
            served.context_length,
            f"your messages are longer than {limit} characters. Please reduce their length.",
        )
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    try:
        return await asyncio.to_thread(served.tokenizer.encode_chat, messages)
    except TemplateRefused as error:
        raise invalid(str(error), "messages") from None


def _token_budget(request: ChatCompletionRequest, prompt: int, context: int) -> int:
    """How many tokens may be generated: the client's limit, or the rest of the context."""
    limit = request.token_limit
    if prompt >= context:
        raise context_length_exceeded(
            context,
            f"your messages resulted in {prompt} tokens. Please reduce the length of the messages.",
        )
    if limit is not None and prompt + limit > context:
        raise context_length_exceeded(
            context,
            f"you requested {prompt + limit} tokens ({prompt} in the messages, {limit} in the "
            "completion). Please reduce the length of the messages or completion.",
        )
    return context - prompt if limit is None else limit


def _sampling(request: ChatCompletionRequest) -> SamplingParams:
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
