"""Prometheus metrics under the `vllm:` names that dashboards and autoscalers already read.

`falcon:` names hold what only this server has. `spec_decode_num_draft_tokens` counts a tree's
nodes verified, so accepted / draft_tokens is low by construction: compare acceptance *length*,
1 + accepted / drafts. `position` is depth in the tree. Speculation is counted as the engine did it;
tokens are counted as responses report them, so the totals are the sums of all `usage` objects.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Literal, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import disable_created_metrics as _disable_created_metrics

from engine.client import Incident
from engine.messages import StepReport

FinishedReason = Literal["stop", "length", "abort", "error"]

_FAST = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.0075)
_TTFT = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_E2E = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920)
TTFT_BUCKETS = (*_FAST, *_TTFT, 640, 2560)
ITL_BUCKETS = (*_FAST, *_ITL, 80)
E2E_BUCKETS = (*_FAST, *_E2E, 7680)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, model_name: str) -> None:
        _disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._in_flight = 0
        self._reported_running = 0
        self._define_requests()
        self._define_speculation()
        self._incidents: dict[Incident, Counter] = {
            "restart": self._counter("engine_restarts", "Engine processes replaced.", "falcon"),
            "replay": self._counter("requests_replayed", "Requests run on after one.", "falcon"),
            "quarantine": self._counter(
                "requests_quarantined", "Requests that killed the engine.", "falcon"
            ),
        }

    def _define_requests(self) -> None:
        self._gauge("num_requests_running", "Requests in the batch.").set_function(self._running)
        self._gauge("num_requests_waiting", "Requests waiting.").set_function(self._waiting)
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Share of KV rows in use, 0 to 1.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens in responses.")
        self._success = Counter(
            "vllm:request_success",
            "Finished requests.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self.ttft = self._histogram("time_to_first_token_seconds", TTFT_BUCKETS)
        self.itl = self._histogram("inter_token_latency_seconds", ITL_BUCKETS)
        self.e2e = self._histogram("e2e_request_latency_seconds", E2E_BUCKETS)

    def _define_speculation(self) -> None:
        self._drafts = self._counter("spec_decode_num_drafts", "Trees verified.")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Tree nodes verified.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafted and accepted.")
        self._accepted_at = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens by depth in the tree.",
            ["model_name", "position"],
            registry=self.registry,
        )
        self._prefill_time = self._counter("prefill_seconds", "Time on prompts.", "falcon")
        self._draft_time = self._counter("draft_seconds", "Time drafting.", "falcon")
        self._verify_time = self._counter("verify_seconds", "Time verifying.", "falcon")
        self._host_time = self._counter("host_seconds", "Rest of the step time.", "falcon")
        self._passes = self._counter("drafter_passes", "Forward passes of the drafter.", "falcon")

    def observe_step(self, report: StepReport) -> None:
        """Count one step of the engine."""
        self._reported_running = report.running
        self._kv_usage.set(report.kv_usage)
        self._drafts.inc(len(report.accepted_lengths))
        self._draft_tokens.inc(report.drafted)
        self._accepted.inc(sum(report.accepted_lengths))
        for depth in range(max(report.accepted_lengths, default=0)):
            reached = sum(length > depth for length in report.accepted_lengths)
            self._accepted_at.labels(self._model_name, str(depth)).inc(reached)
        self._prefill_time.inc(report.prefill_ms / 1000)
        self._draft_time.inc(report.draft_ms / 1000)
        self._verify_time.inc(report.verify_ms / 1000)
        self._host_time.inc(report.host_ms / 1000)
        self._passes.inc(report.passes)

    def observe_incident(self, incident: Incident) -> None:
        """Count something that went wrong. A dead engine runs nothing."""
        self._incidents[incident].inc()
        self._reported_running = 0

    def request_started(self) -> RequestClock:
        self._in_flight += 1
        return RequestClock(self)

    def request_finished(self, reason: FinishedReason) -> None:
        self._in_flight -= 1
        self._success.labels(self._model_name, reason).inc()

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _running(self) -> float:
        """The engine reports only while it steps: what we know of the requests comes first."""
        return min(self._reported_running, self._in_flight)

    def _waiting(self) -> float:
        return self._in_flight - self._running()

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(f"vllm:{name}", text, ["model_name"], registry=self.registry)
        return gauge.labels(self._model_name)

    def _counter(self, name: str, text: str, prefix: str = "vllm") -> Counter:
        counter = Counter(f"{prefix}:{name}", text, ["model_name"], registry=self.registry)
        return counter.labels(self._model_name)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}",
            name.replace("_", " ").capitalize() + ".",
            ["model_name"],
            buckets=buckets,
            registry=self.registry,
        )
        return histogram.labels(self._model_name)


class RequestClock:
    """Measures one request from admission to its end, on the monotonic clock.

    A context manager: leaving it counts the request under its `finish_reason`, or as an error or
    an abort when it has none.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.finish_reason: Literal["stop", "length"] | None = None
        self._metrics = metrics
        self._start = self._last = time.perf_counter()
        self._has_prompt = False
        self._has_tokens = False

    def prompt_read(self, prompt_tokens: int) -> None:
        """The engine is done with the prompt; said again, it counts once."""
        if not self._has_prompt:
            self._metrics.prompt_tokens.inc(prompt_tokens)
        self._has_prompt = True

    def tokens_arrived(self, count: int) -> None:
        """`count` tokens came in one step."""
        if count == 0:
            return
        now = time.perf_counter()
        gap, self._last = now - self._last, now
        if not self._has_tokens:
            self._metrics.ttft.observe(gap)
        else:
            for _ in range(count):
                self._metrics.itl.observe(gap / count)
        self._has_tokens = True
        self._metrics.generation_tokens.inc(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = kind is not None and issubclass(kind, Exception)  # unlike a cancellation
        self._metrics.e2e.observe(time.perf_counter() - self._start)
        self._metrics.request_finished(self.finish_reason or ("error" if failed else "abort"))
