"""Which web pages may ask: our own, and those of the origins that the operator allows.

Browsers let any page send a request to any address that they can reach, a loopback one too, and
say in `Origin` which page it is. So a foreign page's request is refused rather than only hidden
from it. A page of a name that an attacker resolves to our address has that name for `Host` too:
where no key is asked for, our own page is therefore believed only under a name of this machine's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import origin_refused

ANY = "*"


class Origins:
    """Answers 403 to browsers that ask for a page of another origin. Pure ASGI."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str], trusts_host: bool) -> None:
        self.app = app
        self._allowed = frozenset(allowed)
        self._trusts_host = trusts_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or self._may_ask(origin, headers.get("host", "")):
            await self.app(scope, receive, send)
        else:
            await origin_refused().response()(scope, receive, send)

    def _may_ask(self, origin: str, host: str) -> bool:
        if ANY in self._allowed or origin in self._allowed:
            return True
        _, separator, name = origin.partition("://")
        is_same = bool(separator) and name == host
        return is_same and (self._trusts_host or is_loopback(_without_port(host)))


def is_loopback(host: str) -> bool:
    """Whether a name or an address is always this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    """`[::1]:8000` is `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
