"""The HTTP routes. Handlers take the raw request: bodies are parsed by our own strict rules."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from .chat import ServedModel, prepare
from .deadlines import HEADER, Deadlines, in_time
from .deltas import Delta, deltas
from .disconnect import ClientGone, while_connected
from .errors import from_validation, model_not_found
from .priming import Primed
from .replies import completion, events
from .request_body import read_object
from .schemas import ChatCompletionRequest
from .settings import Limits
from .unsupported import ignored_parameters

logger = logging.getLogger(__name__)
router = APIRouter()

PING_SECONDS = 15
SEND_SECONDS = 30
CLIENT_CLOSED_REQUEST = 499  # seen by nobody but a proxy's log


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Parse, check, tokenise; then the one stream of deltas becomes events or an object."""
    served, deadlines = _served(request), _deadlines(request)
    body = await read_object(request)
    served.engine.check_room()
    chat = _validate(body)
    headers = _ignored_headers(ignored_parameters(chat))
    submits = await prepare(chat, served, _key(request))
    request_id = submits[0].request_id
    stream = Primed(in_time(deltas(submits, chat.stop, served), deadlines))
    try:
        if not chat.stream:
            reply = await while_connected(request, completion(request_id, served.name, stream))
            return JSONResponse(reply, headers=headers)
        await while_connected(request, stream.prime(PING_SECONDS))
    except ClientGone:
        await stream.aclose()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except BaseException:
        await stream.aclose()
        raise
    chunks = events(request_id, served.name, stream, chat.num_choices, chat.wants_usage_chunk)
    return _EventStream(stream, chunks, headers)


class _EventStream(EventSourceResponse):
    """Server-sent events that close what they are made of, also when they are never read."""

    def __init__(
        self, stream: Primed[Delta], chunks: AsyncGenerator[bytes, None], headers: dict[str, str]
    ) -> None:
        super().__init__(
            chunks,
            headers=headers,
            sep="\n",
            ping=PING_SECONDS,
            ping_message_factory=_ping,
            send_timeout=SEND_SECONDS,
        )
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stream.aclose()


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
    """200 while the engine can make progress; 503 while it restarts or when it is given up."""
    status = _served(request).engine.status
    if status == "ok":
        return JSONResponse({"status": status})
    return JSONResponse({"status": f"engine is {status}"}, 503, {"retry-after": "5"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(_served(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def show_version() -> dict[str, str]:
    return {"version": version("falcon-server")}


def _served(request: Request) -> ServedModel:
    served: ServedModel = request.app.state.served
    return served


def _deadlines(request: Request) -> Deadlines:
    limits: Limits = request.app.state.limits
    header = request.headers.get(HEADER)
    return Deadlines.starting_now(limits.queue_timeout, limits.request_timeout, header)


def _key(request: Request) -> str:
    """Whose request it is, for a fair share of the engine: a digest, for the token is a secret."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return ""
    return hashlib.sha256(token.strip().encode()).hexdigest()[:16]


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
