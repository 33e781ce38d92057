"""The HTTP routes. Handlers take the raw request: bodies are parsed by our own strict rules."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent

from .chat import ServedModel, deltas, prepare
from .disconnect import ClientGone, while_connected
from .errors import from_validation, model_not_found
from .replies import completion, events
from .request_body import read_object
from .schemas import ChatCompletionRequest
from .unsupported import ignored_parameters

logger = logging.getLogger(__name__)
router = APIRouter()

PING_SECONDS = 15
SEND_SECONDS = 30
CLIENT_CLOSED_REQUEST = 499  # seen by nobody but a proxy's log


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Parse, check, tokenise; then the one stream of deltas becomes events or an object."""
    served = _served(request)
    chat = _validate(await read_object(request))
    headers = _ignored_headers(ignored_parameters(chat))
    submit = await prepare(chat, served)
    stream = deltas(submit, chat.stop, served)
    if chat.stream:
        body = events(submit.request_id, served.name, stream, chat.wants_usage_chunk)
        return EventSourceResponse(
            body,
            headers=headers,
            sep="\n",
            ping=PING_SECONDS,
            ping_message_factory=_ping,
            send_timeout=SEND_SECONDS,
        )
    try:
        reply = await while_connected(request, completion(submit.request_id, served.name, stream))
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(reply, headers=headers)


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    return {"object": "list", "data": [_model_card(_served(request))]}


@router.get("/v1/models/{name:path}")
async def retrieve_model(name: str, request: Request) -> dict[str, Any]:
    served = _served(request)
    if name != served.name:
        raise model_not_found(served.name)
    return _model_card(served)


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    if _served(request).engine.is_alive:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "engine is not running"}, 503, {"retry-after": "5"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(_served(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def show_version() -> dict[str, str]:
    return {"version": version("falcon-server")}


def _served(request: Request) -> ServedModel:
    served: ServedModel = request.app.state.served
    return served


def _validate(body: dict[str, object]) -> ChatCompletionRequest:
    try:
        return ChatCompletionRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from None


def _ignored_headers(names: list[str]) -> dict[str, str]:
    if not names:
        return {}
    logger.info("ignored parameters: %s", ", ".join(names))
    return {"x-falcon-ignored-params": ", ".join(names)}


def _model_card(served: ServedModel) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "falcon",
        "max_model_len": served.context_length,
    }


def _ping() -> ServerSentEvent:
    return ServerSentEvent(comment="ping", sep="\n")
