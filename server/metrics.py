"""Prometheus metrics under the `vllm:` names that dashboards and autoscalers already read.

`falcon:` names hold what only this server has, `http_` ones what any has, `process_` ones are
those of the HTTP process and `falcon_engine_process_` ones those of the engine's.
docs/operations.md lists them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from engine.client import EngineClient, Incident
from engine.messages import Ready, StepReport, Submit

from .meters import Meters
from .request_metrics import RequestClock, RequestMetrics
from .step_metrics import StepMetrics

# Those that mean trouble: there from the start, so that a first one shows as a rise.
_EXPECTED_ERRORS = (
    (429, "queue_full"),
    (500, "generation_failed"),
    (500, "internal_error"),
    (503, "engine_unavailable"),
    (503, "model_loading"),
    (503, "request_quarantined"),
    (503, "server_draining"),
    (504, "deadline_exceeded"),
    (504, "queue_timeout"),
)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, model_name: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here
        self.registry = CollectorRegistry()
        self._make = Meters(self.registry, model_name)
        self._requests = RequestMetrics(self._make)
        self._steps = StepMetrics(self._make)
        self._define_gauges()
        self._define_errors(model_name)
        ProcessCollector(registry=self.registry)

    def _define_gauges(self) -> None:
        gauge = self._make.gauge
        gauge("vllm:num_requests_running", "Requests in the batch.").set_function(self._running)
        gauge("vllm:num_requests_waiting", "Requests waiting.").set_function(self._waiting)
        gauge("vllm:kv_cache_usage_perc", "Share of KV rows in use, 0 to 1.").set_function(
            self._kv_usage
        )
        self._ready = gauge("falcon:ready", "1 while requests can be served.")
        self._tasks = gauge("falcon:event_loop_tasks", "Tasks of the HTTP process.")

    def _define_errors(self, model_name: str) -> None:
        count = self._make.counter
        self._incidents: dict[Incident, Counter] = {
            "restart": count("falcon:engine_restarts", "Engine processes replaced."),
            "replay": count("falcon:requests_replayed", "Requests run on after one."),
            "quarantine": count("falcon:requests_quarantined", "Requests that killed the engine."),
        }
        self._errors = self._make.counters(
            "falcon:request_errors", "Errors told to clients.", "status", "code"
        )
        for status, code in _EXPECTED_ERRORS:
            self._errors(str(status), code)
        self._rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused because too many wait.",
            ["model_name", "reason"],
            registry=self.registry,
        ).labels(model_name, "max_num_queued_reqs")
        self._answers = Counter(
            "http_requests",
            "HTTP answers.",
            ["handler", "method", "status"],
            registry=self.registry,
        )

    def watch(self, engine: EngineClient, is_ready: Callable[[], bool]) -> None:
        """Count what an engine does, and show whether the server is ready."""
        engine.observers.append(self.observe_step)
        engine.incident_observers.append(self.observe_incident)
        self._ready.set_function(is_ready)
        loop = asyncio.get_running_loop()
        self._tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        self._make.info("falcon:build_info", "What is served.", _of(engine, _served_facts))
        self._make.info(
            "vllm:cache_config_info",
            "The cache: a block is a slot of one request.",
            _of(engine, _cache_facts),
        )
        ProcessCollector("falcon_engine", lambda: engine.pid or 0, registry=self.registry)

    def observe_step(self, report: StepReport) -> None:
        """Count one step of the engine."""
        self._steps.observe(report)

    def observe_incident(self, incident: Incident) -> None:
        """Count something that went wrong. A dead engine runs nothing."""
        self._incidents[incident].inc()
        self._steps.running = 0

    def observe_answer(self, handler: str, method: str, status: int) -> None:
        """Count an HTTP answer; all three must come from closed sets."""
        self._answers.labels(handler, method, str(status)).inc()

    def observe_error(self, status: int, code: str) -> None:
        """Count an error that a client was told, by its own status also inside a stream."""
        self._errors(str(status), code).inc()
        if code == "queue_full":
            self._rejections.inc()

    def clocks(self, submits: Sequence[Submit], choices: int, arrived: float) -> list[RequestClock]:
        """One for each submit of a request, of which each prompt has so many `choices`."""
        return [
            RequestClock(self._requests, submit, index % choices == 0, arrived)
            for index, submit in enumerate(submits)
        ]

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _running(self) -> float:
        """The engine reports only while it steps: what we know of the requests comes first."""
        return min(self._steps.running, self._requests.in_flight)

    def _waiting(self) -> float:
        return self._requests.in_flight - self._running()

    def _kv_usage(self) -> float:
        return self._steps.kv_usage if self._requests.in_flight else 0.0


def _of(
    engine: EngineClient, facts: Callable[[Ready], dict[str, str]]
) -> Callable[[], dict[str, str] | None]:
    """Facts of an engine, none until it has said what it is."""
    return lambda: None if engine.ready is None else facts(engine.ready)


def _served_facts(ready: Ready) -> dict[str, str]:
    return {
        "version": version("falcon-server"),
        "dtype": ready.dtype,
        "device": ready.device,
        "speculation": ready.plan,
    }


def _cache_facts(ready: Ready) -> dict[str, str]:
    return {
        "block_size": str(ready.context_length),
        "num_gpu_blocks": str(ready.max_num_seqs),
        "enable_prefix_caching": "True",
    }
