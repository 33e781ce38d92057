"""Around every request: its id, the limit on its headers, and the last resort for errors.

Pure ASGI: Starlette's `BaseHTTPMiddleware` hides client disconnects from the handlers.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import headers_too_large, unexpected

MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 100
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestGuard:
    """Echoes `x-request-id` or makes one; answers 431 and 500 in OpenAI's error format."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        app = _refuse_headers if _has_too_many_headers(scope) else self.app
        try:
            await app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001  # the last resort: logged, and answered 500
            answer = unexpected(error)
            if not has_started:
                await answer.response()(scope, receive, send_with_id)


def _request_id(scope: Scope) -> str:
    offered: str = Headers(scope=scope).get("x-request-id", "")
    return offered if _CLIENT_ID.fullmatch(offered) else secrets.token_hex(16)


def _has_too_many_headers(scope: Scope) -> bool:
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    return len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES


async def _refuse_headers(scope: Scope, receive: Receive, send: Send) -> None:
    await headers_too_large(MAX_HEADER_BYTES, MAX_HEADERS).response()(scope, receive, send)
