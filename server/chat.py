"""From a chat completion request to what the engine is asked."""

from __future__ import annotations

import asyncio

from engine.messages import Submit

from .chat_schemas import ChatCompletionRequest
from .errors import context_length_exceeded, invalid
from .served import ServedModel
from .submits import check_served, submits
from .templates import TemplateRefused

CHARS_PER_TOKEN_CAP = 8


async def prepare(request: ChatCompletionRequest, served: ServedModel, key: str) -> list[Submit]:
    """One `Submit` for each choice. Raises `ApiError` for all that can refuse the request."""
    check_served(request, served)
    prompt_ids = await _encode(request, served)
    if not prompt_ids:
        raise invalid("The messages render to an empty prompt.", "messages")
    return submits(request, prompt_ids, "messages", served, key)


async def _encode(request: ChatCompletionRequest, served: ServedModel) -> list[int]:
    """Prompt ids, in a thread: the tokenizer releases the GIL, and other streams go on."""
    if served.tokenizer.template is None:
        raise invalid("The served model has no chat template, so it cannot chat.", "messages")
    limit = CHARS_PER_TOKEN_CAP * served.context_length
    if sum(len(message.content) for message in request.messages) > limit:
        raise context_length_exceeded(
            served.context_length,
            f"your messages are longer than {limit} characters. Please reduce their length.",
            "messages",
        )
    messages = [{"role": m.role, "content": m.content} for m in request.messages]
    try:
        return await asyncio.to_thread(served.tokenizer.encode_chat, messages)
    except TemplateRefused as error:
        raise invalid(str(error), "messages") from None
