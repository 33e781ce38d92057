"""The one place where HTTP errors are made: OpenAI's error object, with the right status.

A message says what is allowed; it never repeats what the client sent.
"""

from __future__ import annotations

import logging
import re
import secrets
import traceback
from collections.abc import Mapping

from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from engine.client import (
    EngineBusy,
    EngineError,
    EngineStarting,
    EngineStopped,
    RequestQuarantined,
)

logger = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RATE_LIMIT = "rate_limit_error"
CLIENT_CLOSED_REQUEST = 499  # seen by nobody but a proxy's log
ERROR_STATE = "error"  # of a request's state: the status and the code of what its client was told
# OpenAI's SDKs obey it. They would retry any 5xx: here the answer would be the same.
_NO_RETRY = {"x-should-retry": "false"}
_QUOTED = re.compile(r"'([A-Za-z0-9_.]+)'")


class ApiError(Exception):
    """An answer other than success, as the client will see it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }

    def response(self) -> JSONResponse:
        return _ErrorResponse(self)

    @property
    def code(self) -> str:
        """What kind of error it is, in a word of ours."""
        details = self.body["error"]
        return details["code"] or details["type"] or ""

    def note(self, scope: Scope) -> None:
        """Leave word of it in the request's state, for whoever counts errors."""
        scope.setdefault("state", {})[ERROR_STATE] = (self.status, self.code)


class _ErrorResponse(JSONResponse):
    """An error as the whole answer."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.body, error.status, error.headers)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._error.note(scope)
        await super().__call__(scope, receive, send)


def invalid(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param)


def unsupported(param: str, allowed: str) -> ApiError:
    """A parameter of OpenAI's or vLLM's that this server would have to ignore."""
    message = f"'{param}' is not supported by this server. Leave it out, or send {allowed}."
    return ApiError(400, message, param=param, code="unsupported_parameter")


def from_validation(error: ValidationError, prefix: str = "") -> ApiError:
    """The first complaint of pydantic, without the input that caused it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = prefix + ".".join(str(part) for part in first["loc"])
    return invalid(f"Invalid '{param}': {first['msg']}.", param)


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The same complaint about a request whose parameters, or places, have other names."""
    detail = error.body["error"]
    message = _QUOTED.sub(lambda quoted: f"'{_other_name(quoted[1], names)}'", str(error))
    param = detail["param"] and _other_name(detail["param"], names)
    return ApiError(
        error.status,
        message,
        kind=str(detail["type"]),
        param=param,
        code=detail["code"],
        headers=error.headers,
    )


def _other_name(path: str, names: Mapping[str, str]) -> str:
    """The path with its longest beginning that is in `names` replaced."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        if (name := names.get(".".join(parts[:count]))) is not None:
            return ".".join([name, *parts[count:]])
    return path


def model_not_found(served: tuple[str, ...]) -> ApiError:
    names = ", ".join(f"'{name}'" for name in served)
    message = f"The requested model does not exist. This server serves {names}."
    return ApiError(404, message, param="model", code="model_not_found")


def context_length_exceeded(context: int, detail: str, param: str) -> ApiError:
    """OpenAI's wording: clients match it, or the code, to shorten their history."""
    message = f"This model's maximum context length is {context} tokens. However, {detail}"
    return ApiError(400, message, param=param, code="context_length_exceeded")


def unauthorized(is_missing: bool) -> ApiError:
    message = (
        "This server needs an API key: send it as 'Authorization: Bearer KEY'."
        if is_missing
        else "The API key is not one of this server's."
    )
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def origin_refused() -> ApiError:
    message = "Pages of other origins may not use this server; its operator may allow them."
    return ApiError(403, message, code="origin_not_allowed")


def not_found() -> ApiError:
    message = (
        "Unknown route. Try GET /v1/models, POST /v1/chat/completions or POST /v1/completions; "
        "there are also /tokenize, /detokenize, /health, /metrics and /version."
    )
    return ApiError(404, message, code="unknown_url")


def method_not_allowed(headers: Mapping[str, str] | None) -> ApiError:
    return ApiError(
        405, "This route does not take that method.", code="method_not_allowed", headers=headers
    )


def body_too_large(limit: int) -> ApiError:
    message = f"The request body is over the limit of {limit} bytes."
    return ApiError(413, message, code="request_too_large", headers={"connection": "close"})


def body_too_slow(seconds: float) -> ApiError:
    message = f"The request body did not arrive within {seconds:.0f} seconds."
    return ApiError(408, message, code="request_timeout", headers={"connection": "close"})


def malformed_request() -> ApiError:
    message = "The request is not valid HTTP/1.1."
    return ApiError(400, message, code="malformed_request", headers={"connection": "close"})


def request_line_too_long(limit: int) -> ApiError:
    message = f"The request line is over the limit of {limit} bytes."
    return ApiError(414, message, code="request_line_too_long", headers={"connection": "close"})


def headers_too_large(limit: int, count: int) -> ApiError:
    message = f"The request headers are over the limit of {limit} bytes or {count} headers."
    return ApiError(431, message, code="headers_too_large", headers={"connection": "close"})


def engine_unavailable() -> ApiError:
    return ApiError(
        503,
        "The engine is not running. Try again in a few seconds.",
        kind=SERVER_ERROR,
        code="engine_unavailable",
        headers={"retry-after": "5"},
    )


def no_replica() -> ApiError:
    return ApiError(
        503,
        "No replica can take the request. Try again in a few seconds.",
        kind=SERVER_ERROR,
        code="no_replica",
        headers={"retry-after": "5"},
    )


def replica_lost() -> ApiError:
    """Only ever told inside a stream: before its first byte the request goes elsewhere."""
    message = "The replica that was answering is gone. Send the request again."
    return ApiError(503, message, kind=SERVER_ERROR, code="replica_lost")


def model_loading() -> ApiError:
    return ApiError(
        503,
        "The model is being loaded. Try again in a few seconds.",
        kind=SERVER_ERROR,
        code="model_loading",
        headers={"retry-after": "5"},
    )


def server_draining() -> ApiError:
    return ApiError(
        503,
        "The server is about to stop and takes no more work. Try again in a few seconds.",
        kind=SERVER_ERROR,
        code="server_draining",
        headers={"retry-after": "5"},
    )


def from_engine(error: EngineError) -> ApiError:
    """What a client is told when the engine does not serve its request."""
    match error:
        case EngineBusy():
            return queue_full()
        case EngineStarting():
            return model_loading()
        case EngineStopped():
            return server_draining()
        case RequestQuarantined():
            return request_quarantined()
        case _:
            return engine_unavailable()


def queue_full() -> ApiError:
    message = "Too many requests are waiting. Try again in a few seconds."
    return ApiError(429, message, kind=RATE_LIMIT, code="queue_full", headers={"retry-after": "2"})


def queue_timeout() -> ApiError:
    return ApiError(
        504,
        "The request waited too long for its first token. Try again in a few seconds.",
        kind=SERVER_ERROR,
        code="queue_timeout",
        headers={"retry-after": "5"},
    )


def deadline_exceeded() -> ApiError:
    message = "The request did not end within its time limit."
    return ApiError(504, message, kind=SERVER_ERROR, code="deadline_exceeded", headers=_NO_RETRY)


def request_quarantined() -> ApiError:
    """503 and not 500: the engine was away because of it, and others were served."""
    message = "The engine stopped twice on this request, so it is not run again."
    return ApiError(503, message, kind=SERVER_ERROR, code="request_quarantined", headers=_NO_RETRY)


def generation_failed() -> ApiError:
    message = "The engine failed on this request; others were not affected."
    return ApiError(500, message, kind=SERVER_ERROR, code="generation_failed")


def unexpected(error: BaseException) -> ApiError:
    """A bug of ours: a fixed text for the client, the way to the bug for the log.

    The log gets types and frames but not the exception's text, which may quote a prompt.
    """
    error_id = secrets.token_hex(8)
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("error %s: %s\n%s", error_id, type(error).__qualname__, frames)
    message = f"The server failed on this request. Its log has the details under {error_id}."
    return ApiError(500, message, kind=SERVER_ERROR, code="internal_error")
