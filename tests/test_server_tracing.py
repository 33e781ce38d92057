"""Traces: one span a request, at a collector that reads OTLP, and nothing of anybody's text."""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.arguments import add_arguments
from server.serve import serve
from server.settings import SettingsError, settings_from
from tests.server_harness import Running, build_model_folder, eventually, running_server

SECRET = "the falcon flies over the hills"
Span = dict[str, Any]


class Collector(ThreadingHTTPServer):
    """Takes spans over HTTP; `raw` is all that came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.raw = b""
        self.spans: list[Span] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans += [as_dict(span) for span in scope.spans]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        self.server.take(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def as_dict(span: Any) -> Span:
    """Name, status, seconds, parent and attributes; a list is a list of texts."""
    fields: Span = {
        "name": span.name,
        "failed": span.status.code == 2,
        "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        "parent": span.parent_span_id.hex(),
    }
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        is_list = kind == "array_value"
        fields[attribute.key] = [one.string_value for one in value.values] if is_list else value
    return fields


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server(
    folder: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with running_server(folder, traces=collector.url) as running:
        yield running


def spans(collector: Collector, count: int = 1) -> list[Span]:
    eventually(lambda: len(collector.spans) >= count)
    assert len(collector.spans) == count
    return collector.spans


def test_a_request_is_one_span_with_what_it_asked_and_what_it_took(
    server: Running, collector: Collector
) -> None:
    order = {"say": f"{SECRET} {SECRET}", "step": 2, "delay": 0.02}
    fields = {"temperature": 0.5, "max_tokens": 9, "n": 2}
    usage = server.post(server.chat(order, **fields)).json()["usage"]
    (span,) = spans(collector)
    assert span["name"] == "chat tiny"
    assert not span["failed"]
    assert span["gen_ai.operation.name"] == "chat"
    assert span["gen_ai.provider.name"] == "falcon"
    assert span["gen_ai.request.model"] == "tiny"
    assert span["gen_ai.request.temperature"] == 0.5
    assert span["gen_ai.request.max_tokens"] == 9
    assert span["gen_ai.request.choice.count"] == 2
    assert span["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert span["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 18
    assert span["gen_ai.usage.cache_read.input_tokens"] == 3
    assert span["gen_ai.response.finish_reasons"] == ["length", "length"]
    latency = {name: span[f"gen_ai.latency.{name}"] for name in LATENCIES}
    assert latency["time_to_first_token"] == pytest.approx(
        latency["time_in_queue"] + latency["time_in_model_prefill"]
    )
    assert latency["time_in_model_decode"] >= 4 * 0.02
    assert latency["e2e"] <= span["seconds"]
    assert span["falcon.tokens_per_step"] == pytest.approx(9 / 5)


LATENCIES = (
    "time_in_queue",
    "time_to_first_token",
    "time_in_model_prefill",
    "time_in_model_decode",
    "e2e",
)


def test_no_text_of_anybody_leaves(server: Running, collector: Collector) -> None:
    headers = {"authorization": "Bearer secret-key", "x-request-id": "secret-id"}
    body = server.chat({"say": SECRET}, stop=["falcon"])
    assert "the " in server.post(body, headers=headers).json()["choices"][0]["message"]["content"]
    spans(collector)
    assert not any(word in collector.raw for word in (b"falcon flies", b"the ", b"secret"))


def test_a_stream_is_part_of_its_clients_trace(server: Running, collector: Collector) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = server.chat({"say": "hello"}, stream=True)
    assert server.post(body, headers={"traceparent": trace}).status_code == 200
    (span,) = spans(collector)
    assert span["parent"] == "b7ad6b7169203331"
    assert bytes.fromhex("0af7651916cd43dd8448eb211c80319c") in collector.raw
    assert span["gen_ai.response.finish_reasons"] == ["stop"]


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_request_that_fails_says_why(
    server: Running, collector: Collector, is_stream: bool
) -> None:
    body = server.chat({"say": "hello", "step": 1, "error_after": 2}, stream=is_stream)
    server.post(body)
    (span,) = spans(collector)
    assert span["failed"]
    assert span["error.type"] == "generation_failed"
    assert span["gen_ai.usage.output_tokens"] >= 1


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_is_told_from_a_failure(
    server: Running, collector: Collector, is_stream: bool
) -> None:
    body = server.chat({"say": SECRET, "step": 1, "stall_after": 2}, stream=is_stream)
    server.leave(body)
    (span,) = spans(collector)
    assert span["error.type"] == "client_closed_request"


def test_what_is_left_is_sent_at_the_end(folder: Path, collector: Collector) -> None:
    with running_server(folder, traces=collector.url) as server:
        server.post(server.chat("hi"))
        assert collector.spans == []
    spans(collector)


def test_a_collector_that_is_away_costs_no_answer(folder: Path) -> None:
    with running_server(folder, traces="http://127.0.0.1:9/v1/traces") as server:
        assert server.post(server.chat("hi")).status_code == 200


def test_without_opentelemetry_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "server.tracing", None)
    words = [str(folder), "--port", "0", "--otlp-traces-endpoint", "http://localhost:1/v1/traces"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SettingsError, match=r"falcon-server\[otel\]"):
        asyncio.run(serve(settings_from(parser.parse_args(words))))
