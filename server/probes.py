"""What balancers and orchestrators ask. None of it needs a key or runs the model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from .answering import served_model
from .lifecycle import Life

RETRY_SECONDS = 5

router = APIRouter()


@router.api_route("/livez", methods=["GET", "HEAD"])
async def livez(http: Request) -> JSONResponse:
    """503 when only a restart helps: the engine is given up. An idle server is alive.

    That it answers shows that the event loop turns; that the engine makes progress is watched by
    its supervisor, which replaces one that does not.
    """
    is_alive = not _life(http).is_hopeless
    return _answer("alive" if is_alive else "engine given up", is_alive)


@router.api_route("/readyz", methods=["GET", "HEAD"])
async def readyz(http: Request) -> JSONResponse:
    """200 while requests are welcome: loaded, warm, its engine at work, not on its way out."""
    state = _life(http).state
    return _answer(state, state == "ready")


@router.api_route("/health", methods=["GET", "HEAD"])
@router.api_route("/ping", methods=["GET", "HEAD", "POST"])
async def health(http: Request) -> JSONResponse:
    """200 while the engine can make progress, as vLLM's; `/ping` is SageMaker's name for it."""
    status = served_model(http).engine.status
    return _answer(status if status == "ok" else f"engine is {status}", status == "ok")


def _life(http: Request) -> Life:
    life: Life = http.app.state.life
    return life


def _answer(status: str, is_fine: bool) -> JSONResponse:
    body: dict[str, Any] = {"status": status}
    if is_fine:
        return JSONResponse(body)
    return JSONResponse(body, 503, {"retry-after": str(RETRY_SECONDS)})
