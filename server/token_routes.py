"""Text to token ids and back, without the engine."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from .answering import ignored_headers, json_response, served_model, validated
from .errors import invalid, model_not_found
from .prompts import conversation_of, encode, template_of
from .request_body import read_object
from .served import ServedModel
from .token_schemas import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest

router = APIRouter()


@router.post("/tokenize")
async def tokenize(http: Request) -> Response:
    served = served_model(http)
    body = await read_object(http)
    request: TokenizeTextRequest | TokenizeChatRequest
    if body.get("messages") is None:
        request = validated(TokenizeTextRequest, body)
    else:
        request = validated(TokenizeChatRequest, body)
    request.check()
    _check_model(request.model, served)
    headers = ignored_headers(http, request.extras())
    ids = await _encode(request, served)
    length = served.context_length
    reply: dict[str, Any] = {"count": len(ids), "max_model_len": length, "tokens": ids}
    if request.return_token_strs:
        reply["token_strs"] = await asyncio.to_thread(served.tokenizer.token_names, ids)
    return json_response(reply, headers)


@router.post("/detokenize")
async def detokenize(http: Request) -> Response:
    served = served_model(http)
    request = validated(DetokenizeRequest, await read_object(http))
    _check_model(request.model, served)
    headers = ignored_headers(http, request.extras())
    limit = served.tokenizer.vocab_size
    if max(request.tokens, default=0) >= limit:
        raise invalid(f"Token ids in 'tokens' must be from 0 to {limit - 1}.", "tokens")
    text = await asyncio.to_thread(served.tokenizer.decode, request.tokens)
    return json_response({"prompt": text}, headers)


async def _encode(
    request: TokenizeTextRequest | TokenizeChatRequest, served: ServedModel
) -> list[int]:
    """In a thread: a body may hold a million characters."""
    if isinstance(request, TokenizeChatRequest):
        conversation = conversation_of(request, template_of(served), served.dialect)
        return (await encode(conversation, served)).ids
    adds_special = request.add_special_tokens is not False
    text = request.prompt or ""
    encoded = await asyncio.to_thread(served.tokenizer.encode_text, text, adds_special)
    return encoded.ids


def _check_model(name: str | None, served: ServedModel) -> None:
    if name is not None and name not in served.names:
        raise model_not_found(served.names)
