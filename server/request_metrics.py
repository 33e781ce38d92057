"""What is measured of each request: its times on the monotonic clock, and its tokens.

Tokens are counted as responses report them, so the totals are the sums of all `usage` objects.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Literal, Self

from prometheus_client import Counter, Histogram

from engine.messages import RequestOutput, Submit

from . import buckets
from .meters import Meters

FinishedReason = Literal["stop", "length", "abort", "error"]
_REASONS: tuple[FinishedReason, ...] = ("stop", "length", "abort", "error")


class RequestMetrics:
    """The `vllm:` metrics of requests; each choice of a request counts as one, its prompt once."""

    def __init__(self, make: Meters) -> None:
        self.in_flight = 0
        self._define_tokens(make)
        self._define_times(make)
        finished = make.counters("vllm:request_success", "Finished requests.", "finished_reason")
        self._finished: dict[FinishedReason, Counter] = {why: finished(why) for why in _REASONS}

    def _define_tokens(self, make: Meters) -> None:
        count, spread = make.counter, make.histogram
        sources = make.counters(
            "vllm:prompt_tokens_by_source", "Prompt tokens by where they came from.", "source"
        )
        self.prompt_tokens = count("vllm:prompt_tokens", "Prompt tokens of answered requests.")
        self.cached_tokens = count("vllm:prompt_tokens_cached", "Those found in the cache.")
        self.computed_source = sources("local_compute")
        self.cached_source = sources("local_cache_hit")
        self.generation_tokens = count("vllm:generation_tokens", "Tokens in responses.")
        self.prompt_length = spread(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", buckets.TOKENS
        )
        self.computed_length = spread(
            "vllm:request_prefill_kv_computed_tokens", "Those not cached.", buckets.TOKENS
        )
        self.output_length = spread(
            "vllm:request_generation_tokens", "Tokens in a response.", buckets.TOKENS
        )
        self.max_tokens = spread(
            "vllm:request_params_max_tokens", "Tokens that a response may have.", buckets.TOKENS
        )
        self.tokens_per_step = spread(
            "falcon:request_tokens_per_step",
            "Tokens that a step gave a request on average, the bonus token counted.",
            buckets.TOKENS_PER_STEP,
        )

    def _define_times(self, make: Meters) -> None:
        def whole(name: str, text: str) -> Histogram:
            return make.histogram(f"vllm:{name}_seconds", text, buckets.REQUEST)

        self.ttft = make.histogram(
            "vllm:time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            buckets.TTFT,
        )
        self.itl = make.histogram(
            "vllm:inter_token_latency_seconds",
            "Time between tokens: a step's, shared among the tokens it gave.",
            buckets.PER_TOKEN,
        )
        self.tpot = make.histogram(
            "vllm:request_time_per_output_token_seconds",
            "A request's mean time between tokens.",
            buckets.PER_TOKEN,
        )
        self.e2e = whole("e2e_request_latency", "From arrival to the end.")
        self.queue = whole("request_queue_time", "From arrival to a slot of the engine.")
        self.prefill = whole("request_prefill_time", "From the slot to the first token.")
        self.decode = whole("request_decode_time", "From the first token to the last.")
        self.inference = whole("request_inference_time", "From the slot to the last token.")

    def started(self, max_tokens: int) -> None:
        self.in_flight += 1
        self.max_tokens.observe(max_tokens)

    def finished(self, reason: FinishedReason) -> None:
        self.in_flight -= 1
        self._finished[reason].inc()


class RequestClock:
    """Measures one choice of a request that `arrived` then (`perf_counter`), from then to its end.

    A context manager: entering it counts the request as in flight, leaving it as one that ended
    by its `finish_reason`, or by an error or an abort when it has none. `prompt_tokens` are counted
    once they were read, for the choice that pays for them.
    """

    def __init__(
        self, metrics: RequestMetrics, submit: Submit, pays_for_prompt: bool, arrived: float
    ) -> None:
        self.finish_reason: Literal["stop", "length"] | None = None
        self._metrics = metrics
        self._max_tokens = submit.max_tokens
        self._prompt_tokens = len(submit.prompt_ids) if pays_for_prompt else 0
        self._start = arrived
        self._first = self._last = 0.0
        self._prefill = 0.0
        self._tokens = self._steps = 0

    def arrived(self, output: RequestOutput, tokens: int) -> None:
        """An output came; so many `tokens` of it stand before a stop."""
        if tokens or output.finish_reason in ("stop", "length"):
            self._count_prompt(output)
        if tokens:
            self._count_tokens(output, tokens)

    def _count_prompt(self, output: RequestOutput) -> None:
        own, prompt, self._prompt_tokens = self._metrics, self._prompt_tokens, 0
        if prompt:
            computed = prompt - output.cached_tokens
            own.prompt_tokens.inc(prompt)
            own.prompt_length.observe(prompt)
            own.computed_length.observe(computed)
            own.computed_source.inc(computed)
            own.cached_source.inc(output.cached_tokens)
            own.cached_tokens.inc(output.cached_tokens)

    def _count_tokens(self, output: RequestOutput, tokens: int) -> None:
        now = time.perf_counter()
        if self._tokens == 0:
            self._begin(now, output)
        else:
            for _ in range(tokens):
                self._metrics.itl.observe((now - self._last) / tokens)
        self._last = now
        self._tokens += tokens
        self._steps += 1
        self._metrics.generation_tokens.inc(tokens)

    def _begin(self, now: float, output: RequestOutput) -> None:
        """The first tokens are there. Only the engine knows how much of the time it worked."""
        own, waited = self._metrics, now - self._start
        self._first = now
        self._prefill = min(output.slot_ms / 1e3, waited)
        own.ttft.observe(waited)
        own.prefill.observe(self._prefill)
        own.queue.observe(waited - self._prefill)

    def __enter__(self) -> Self:
        self._metrics.started(self._max_tokens)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = kind is not None and issubclass(kind, Exception)  # unlike a cancellation
        own = self._metrics
        own.e2e.observe(time.perf_counter() - self._start)
        own.finished(self.finish_reason or ("error" if failed else "abort"))
        if self._tokens:
            decode = self._last - self._first
            own.decode.observe(decode)
            own.inference.observe(self._prefill + decode)
            own.output_length.observe(self._tokens)
            own.tokens_per_step.observe(self._tokens / self._steps)
        if self._tokens > 1:
            own.tpot.observe(decode / (self._tokens - 1))
