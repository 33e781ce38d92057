"""From a chat completion request to what the engine is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from engine.messages import Submit

from .chat_schemas import ChatCompletionRequest, ChatMessage
from .errors import context_length_exceeded, invalid
from .served import ServedModel
from .submits import check_characters, check_served, submits
from .templates import TemplateRefused


async def prepare(request: ChatCompletionRequest, served: ServedModel, key: str) -> list[Submit]:
    """One `Submit` for each choice. Raises `ApiError` for all that can refuse the request."""
    check_served(request, served)
    characters = sum(len(message.content) for message in request.messages)
    check_characters(characters, "messages", served)
    prompt_ids = await encode_messages(request.messages, served)
    if not prompt_ids:
        raise invalid("The messages render to an empty prompt.", "messages")
    asked = submits(request, prompt_ids, "messages", served, key)
    prediction_ids = await _encode_prediction(request, served)
    return [msgspec.structs.replace(one, prediction_ids=prediction_ids) for one in asked]


async def encode_messages(
    messages: Sequence[ChatMessage], served: ServedModel, add_generation_prompt: bool = True
) -> list[int]:
    """Prompt ids, in a thread: the tokenizer releases the GIL, and other streams go on.

    Raises `ApiError` where the model has no template, or a template that refuses them.
    """
    if served.tokenizer.template is None:
        raise invalid("The served model has no chat template, so it cannot chat.", "messages")
    plain = [{"role": m.role, "content": m.content} for m in messages]
    encode = served.tokenizer.encode_chat
    try:
        return await asyncio.to_thread(encode, plain, add_generation_prompt)
    except TemplateRefused as error:
        raise invalid(str(error), "messages") from None


async def _encode_prediction(request: ChatCompletionRequest, served: ServedModel) -> list[int]:
    """Ids of the predicted answer, no longer than the context."""
    if request.prediction is None:
        return []
    text, context = request.prediction.content, served.context_length
    check_characters(len(text), "prediction", served)
    ids = await asyncio.to_thread(served.tokenizer.encode_plain, text)
    if len(ids) > context:
        detail = f"your prediction resulted in {len(ids)} tokens. Please shorten it."
        raise context_length_exceeded(context, detail, "prediction")
    return ids
