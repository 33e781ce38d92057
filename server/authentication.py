"""Who may ask: everything needs a key, save for the few paths that are listed here.

The path that decides is the one that the router goes by, `scope["path"]`, compared as a whole:
other spellings of an open path are closed, and so is a new route until it is listed. Pure ASGI.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from .api_keys import ApiKeys, bearer_key, key_digest
from .errors import unauthorized

PROBES = frozenset({"/livez", "/readyz", "/health", "/ping"})
METRICS = "/metrics"
KEY_STATE = "key"  # of a request's state: the beginning of its key's digest
KEY_DIGITS = 8
_PAGE = re.compile(r"/|/static/[A-Za-z0-9_.-]+")


def is_open(path: str, open_metrics: bool) -> bool:
    """Whether a path needs no key."""
    if path == METRICS:
        return open_metrics
    return path in PROBES or _PAGE.fullmatch(path) is not None


class Authentication:
    """Answers 401 where keys are required and none of them is shown."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, open_metrics: bool = False) -> None:
        self.app = app
        self._keys = keys
        self._open_metrics = open_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._keys.are_required or is_open(scope["path"], self._open_metrics):
            await self.app(scope, receive, send)
            return
        offered = [value for name, value in scope["headers"] if name == b"authorization"]
        key = bearer_key(offered[0].decode("latin-1")) if len(offered) == 1 else ""
        if self._keys.admit(key):
            scope.setdefault("state", {})[KEY_STATE] = key_digest(key)[:KEY_DIGITS]
            await self.app(scope, receive, send)
        else:
            await unauthorized(is_missing=not key).response()(scope, receive, send)
