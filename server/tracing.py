"""One OpenTelemetry span a request, with the conventions' `gen_ai.` names and no text of anybody's.

Nobody imports this module unless `--otlp-traces-endpoint` is given.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib.metadata import version

from fastapi import Request
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from engine.messages import Submit

from .deltas import Delta
from .events import as_api_error
from .request_metrics import RequestClock

SEND_SECONDS = 5.0
_OPERATIONS = {"/v1/completions": "text_completion"}  # all others chat


class Tracing:
    """Sends spans to an OTLP collector, from a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        own = version("falcon-server")
        resource = Resource.create({"service.name": "falcon", "service.version": own})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("falcon", own)
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    async def traced(
        self,
        http: Request,
        model: str,
        submits: Sequence[Submit],
        clocks: Sequence[RequestClock],
        stream: AsyncGenerator[Delta, None],
    ) -> AsyncGenerator[Delta, None]:
        """The same deltas; the span begins when the request arrived and ends with them."""
        span = self._start(http, model, submits, clocks[0])
        ends: dict[int, str] = {}
        try:
            async with aclosing(stream):
                async for delta in stream:
                    if delta.finish_reason is not None:
                        ends[delta.index] = delta.finish_reason
                    yield delta
        except Exception as error:
            told = as_api_error(error)
            _fail(span, told.code)
            raise told from error
        except BaseException:  # closed or cancelled
            _fail(span, "client_closed_request")
            raise
        finally:
            span.set_attribute("gen_ai.response.finish_reasons", [ends[i] for i in sorted(ends)])
            span.set_attributes(_measured(clocks))
            span.end()

    def _start(
        self, http: Request, model: str, submits: Sequence[Submit], clock: RequestClock
    ) -> Span:
        operation = _OPERATIONS.get(http.url.path, "chat")
        return self._tracer.start_span(
            f"{operation} {model}",
            context=self._propagator.extract(http.headers),
            kind=SpanKind.SERVER,
            start_time=time.time_ns() - round(1e9 * clock.age),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "falcon",
                "gen_ai.request.model": model,
                "gen_ai.response.model": model,
                "gen_ai.request.id": submits[0].request_id,
                "gen_ai.request.choice.count": len(submits),
                **_asked(submits[0]),
            },
        )


def _asked(submit: Submit) -> dict[str, AttributeValue]:
    sampling = submit.sampling
    return {
        "gen_ai.request.max_tokens": submit.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "falcon.request.speculative": submit.speculative,
    }


def _measured(clocks: Sequence[RequestClock]) -> dict[str, AttributeValue]:
    """Tokens of all choices, times of the first; in seconds, by the names that vLLM gives them."""
    first = clocks[0]
    found: dict[str, AttributeValue] = {
        "gen_ai.usage.input_tokens": sum(clock.prompt_tokens for clock in clocks),
        "gen_ai.usage.cache_read.input_tokens": sum(clock.cached_tokens for clock in clocks),
        "gen_ai.usage.output_tokens": sum(clock.tokens for clock in clocks),
        "gen_ai.latency.e2e": first.age,
    }
    if first.tokens:
        found |= {
            "gen_ai.latency.time_in_queue": first.queue_seconds,
            "gen_ai.latency.time_to_first_token": first.queue_seconds + first.prefill_seconds,
            "gen_ai.latency.time_in_model_prefill": first.prefill_seconds,
            "gen_ai.latency.time_in_model_decode": first.decode_seconds,
            "falcon.tokens_per_step": first.tokens_per_step,
        }
    return found


def _fail(span: Span, code: str) -> None:
    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute("error.type", code)
