"""Where traces go, if anywhere: OpenTelemetry is imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from .settings import SettingsError

if TYPE_CHECKING:
    from .tracing import Tracing


@contextmanager
def traces_sent(endpoint: str | None) -> Iterator[Tracing | None]:
    """What sends traces to the endpoint; what is left is sent at the end.

    Raises `SettingsError` where OpenTelemetry is not installed.
    """
    if endpoint is None:
        yield None
        return
    try:
        from .tracing import Tracing
    except ImportError as error:
        raise SettingsError(
            "--otlp-traces-endpoint needs OpenTelemetry: pip install 'falcon-server[otel]'"
        ) from error
    with closing(Tracing(endpoint)) as tracing:
        yield tracing
