"""The HTTP routes. Handlers take the raw request: bodies are parsed by our own strict rules."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from .answering import answer, key_of, served_model, validated
from .chat import prepare
from .chat_replies import ChatReplies
from .chat_schemas import ChatCompletionRequest
from .completion_replies import CompletionReplies
from .completion_schemas import CompletionRequest
from .completions import prepare_completion
from .errors import model_not_found
from .request_body import read_object
from .served import ServedModel

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(http: Request) -> Response:
    served = served_model(http)
    body = await read_object(http)
    served.engine.check_room()
    request = validated(ChatCompletionRequest, body)
    request.check()
    chat = await prepare(request, served, key_of(http))
    replies = ChatReplies(request, chat.submits[0].request_id)
    return await answer(http, request, chat.submits, replies, chat.reading, [chat.ignored])


@router.post("/v1/completions")
async def create_completion(http: Request) -> Response:
    served = served_model(http)
    body = await read_object(http)
    served.engine.check_room()
    request = validated(CompletionRequest, body)
    request.check()
    submits, prompts = await prepare_completion(request, served, key_of(http))
    replies = CompletionReplies(request, prompts, submits[0].request_id)
    return await answer(http, request, submits, replies)


@router.get("/v1/models")
async def list_models(http: Request) -> dict[str, Any]:
    served = served_model(http)
    return {"object": "list", "data": [_model_card(name, served) for name in served.names]}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, http: Request) -> dict[str, Any]:
    served = served_model(http)
    if name not in served.names:
        raise model_not_found(served.names)
    return _model_card(name, served)


@router.get("/metrics")
async def metrics(http: Request) -> Response:
    text = await asyncio.to_thread(served_model(http).metrics.exposition)  # takes milliseconds
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def show_version() -> dict[str, str]:
    return {"version": version("falcon-server")}


def _model_card(name: str, served: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "falcon",
        "root": served.names[0],
        "max_model_len": served.context_length,
    }
