"""A chat request's life between HTTP and the engine: prepare it, then one stream of deltas."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from engine.client import EngineClient
from engine.messages import RequestOutput, SamplingParams, Submit

from .detokenizer import Detokenizer
from .errors import (
    context_length_exceeded,
    engine_unavailable,
    generation_failed,
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


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that one step added; the last one carries the finish reason and may have no text."""

    text: str
    finish_reason: Literal["stop", "length"] | None
    usage: Usage


async def prepare(request: ChatCompletionRequest, served: ServedModel) -> Submit:
    """Everything that can refuse the request, before the first byte of an answer.

    Raises `ApiError`. The engine's request id is always our own.
    """
    if request.model != served.name:
        raise model_not_found(served.name)
    if not served.engine.is_alive:
        raise engine_unavailable()
    prompt_ids = await _encode(request, served)
    if not prompt_ids:
        raise invalid("The messages render to an empty prompt.", "messages")
    return Submit(
        request_id=secrets.token_hex(12),
        prompt_ids=prompt_ids,
        max_tokens=_token_budget(request, len(prompt_ids), served.context_length),
        sampling=_sampling(request),
        stop_token_ids=served.tokenizer.stop_ids,
    )


async def deltas(
    submit: Submit, stops: list[str], served: ServedModel
) -> AsyncGenerator[Delta, None]:
    """Run the request; yield one delta for each step that made text certain, and a last one.

    Ends after the delta with a finish reason. Closing it early aborts the request in the engine.
    Raises `EngineDied`, or `ApiError` when the engine failed on this request.
    """
    text = Detokenizer(served.tokenizer, stops)
    with served.metrics.request_started() as clock:
        async with aclosing(served.engine.generate(submit)) as outputs:
            async for output in outputs:
                consumed = text.consumed
                piece = text.push(output.token_ids)
                clock.tokens_arrived(text.consumed - consumed, len(submit.prompt_ids))
                if output.finish_reason == "error":
                    raise generation_failed()
                if output.finish_reason is not None:
                    piece += text.finish()
                end = clock.finish_reason = "stop" if text.is_stopped else output.finish_reason
                if piece or end:
                    yield Delta(piece, end, _usage(submit, text, output))
                if end:
                    return


def _usage(submit: Submit, text: Detokenizer, output: RequestOutput) -> Usage:
    return Usage(len(submit.prompt_ids), text.consumed, output.cached_tokens)


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
    )
