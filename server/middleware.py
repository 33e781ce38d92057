"""Around every request: its id, the limits of its head, and the last resort for errors.

Pure ASGI: Starlette's `BaseHTTPMiddleware` hides client disconnects from the handlers.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import (
    ApiError,
    headers_too_large,
    malformed_request,
    request_line_too_long,
    unexpected,
)

MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 100
MAX_LINE_BYTES = 8 * 1024  # method, path and query
REQUEST_ID_STATE = "request_id"
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestGuard:
    """Echoes `x-request-id` or makes one; answers 400, 414, 431 and 500 in OpenAI's format."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})[REQUEST_ID_STATE] = _request_id(scope)
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        refusal = _refusal(scope)
        try:
            app = self.app if refusal is None else refusal.response()
            await app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001  # the last resort: logged, and answered 500
            answer = unexpected(error)
            if not has_started:
                await answer.response()(scope, receive, send_with_id)


def _request_id(scope: Scope) -> str:
    offered: str = Headers(scope=scope).get("x-request-id", "")
    return offered if _CLIENT_ID.fullmatch(offered) else secrets.token_hex(16)


def _refusal(scope: Scope) -> ApiError | None:
    """What is wrong with the head of a request, if anything."""
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS or sum(map(_length, headers)) > MAX_HEADER_BYTES:
        return headers_too_large(MAX_HEADER_BYTES, MAX_HEADERS)
    line = len(scope["method"]) + len(scope["raw_path"]) + len(scope["query_string"])
    if line > MAX_LINE_BYTES:
        return request_line_too_long(MAX_LINE_BYTES)
    return malformed_request() if _is_ambiguous(scope) else None


def _length(header: tuple[bytes, bytes]) -> int:
    name, value = header
    return len(name) + len(value)


def _is_ambiguous(scope: Scope) -> bool:
    """Whether a proxy before us may see another end of the request than we do."""
    names = [name for name, _ in scope["headers"]]
    is_chunked = b"transfer-encoding" in names
    match scope["http_version"]:
        case "1.1":
            return is_chunked and b"content-length" in names
        case "1.0":
            return is_chunked
        case _:
            return True
