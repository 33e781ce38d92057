"""The ASGI application: routes, error handlers, middleware."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from engine.client import EngineError

from . import page
from .authentication import Authentication
from .errors import (
    CLIENT_CLOSED_REQUEST,
    ApiError,
    from_engine,
    invalid,
    method_not_allowed,
    not_found,
)
from .lifecycle import Gate, Life
from .metrics import Metrics
from .middleware import RequestGuard
from .openapi import router as openapi
from .origins import Origins
from .probes import router as probes
from .request_log import RequestLog, RequestLogger
from .responses import router as responses
from .routes import router
from .served import ServedModel
from .settings import Access, Limits
from .token_routes import router as token_router

READABLE_HEADERS = ["retry-after", "x-falcon-ignored-params", "x-request-id"]  # by pages' scripts


def create_app(
    served: ServedModel, life: Life, limits: Limits, access: Access, log: RequestLog
) -> FastAPI:
    """The application for one served model, whose engine may still have to start."""
    # Its default is to cut every live stream half a second after SIGTERM.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # untyped library
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.state.served = served
    app.state.life = life
    app.state.limits = limits
    app.state.access = access
    app.state.request_log = log
    app.include_router(router)
    app.include_router(token_router)
    app.include_router(responses)
    app.include_router(openapi)
    app.include_router(page.router)
    app.include_router(probes)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(EngineError, _answer_engine_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    _add_middleware(app, life, access, served.metrics)
    return app


def _add_middleware(app: FastAPI, life: Life, access: Access, metrics: Metrics) -> None:
    """The last one added is the first to see a request."""
    app.add_middleware(Gate, life=life)
    guard(app, access)
    app.add_middleware(RequestLogger, metrics=metrics)


def guard(app: Starlette, access: Access) -> None:
    """Let nothing in that is malformed, or from those who may not ask."""
    app.add_middleware(Authentication, keys=access.keys, open_metrics=access.open_metrics)
    app.add_middleware(Origins, allowed=access.allowed_origins, trusts_host=access.trusts_host)
    if access.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=READABLE_HEADERS,
        )
    app.add_middleware(RequestGuard)


async def _answer_api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _answer_engine_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EngineError)
    return from_engine(error).response()


async def _answer_nobody(_: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _answer_http_error(_: Request, error: Exception) -> JSONResponse:
    """What the router says about routes and methods, in OpenAI's format."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return not_found().response()
    if error.status_code == 405:
        return method_not_allowed(error.headers).response()
    answer = invalid("The request could not be understood.")
    answer.status = error.status_code
    return answer.response()
