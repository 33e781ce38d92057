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
        self._prompt_tokens = count("vllm:prompt_tokens", "Prompt tokens of answered requests.")
        self._cached_tokens = count("vllm:prompt_tokens_cached", "Those found in the cache.")
        self._computed_source = sources("local_compute")
        self._cached_source = sources("local_cache_hit")
        self.generation_tokens = count("vllm:generation_tokens", "Tokens in responses.")
        self._prompt_length = spread(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", buckets.TOKENS
        )
        self._computed_length = spread(
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

    def count_prompt(self, tokens: int, cached: int) -> None:
        """A prompt was read, of which so many tokens were in the cache."""
        self._prompt_tokens.inc(tokens)
        self._prompt_length.observe(tokens)
        self._cached_tokens.inc(cached)
        self._cached_source.inc(cached)
        self._computed_source.inc(tokens - cached)
        self._computed_length.observe(tokens - cached)

    def finished(self, reason: FinishedReason) -> None:
        self.in_flight -= 1
        self._finished[reason].inc()


class RequestClock:
    """Measures one choice of a request that `arrived` then (`perf_counter`), from then to its end.

    A context manager: entering it counts the request as in flight, leaving it as one that ended
    by its `finish_reason`, or by an error or an abort when it has none. The choice that pays for
    the prompt has its tokens, once they were read.
    """

    def __init__(
        self, metrics: RequestMetrics, submit: Submit, pays_for_prompt: bool, arrived: float
    ) -> None:
        self.finish_reason: Literal["stop", "length"] | None = None
        self.prompt_tokens = self.cached_tokens = self.tokens = 0
        self.queue_seconds = self.prefill_seconds = 0.0
        self._metrics = metrics
        self._submit = submit
        self._pays_for_prompt = pays_for_prompt
        self._arrived = arrived
        self._first = self._last = 0.0
        self._steps = 0

    @property
    def age(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._arrived

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        return self._last - self._first

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self._steps

    def arrived(self, output: RequestOutput, tokens: int) -> None:
        """An output came; so many `tokens` of it stand before a stop."""
        if tokens or output.finish_reason in ("stop", "length"):
            self._count_prompt(output)
        if tokens:
            self._count_tokens(output, tokens)

    def _count_prompt(self, output: RequestOutput) -> None:
        if not self._pays_for_prompt or self.prompt_tokens:
            return
        self.prompt_tokens = len(self._submit.prompt_ids)
        self.cached_tokens = output.cached_tokens
        self._metrics.count_prompt(self.prompt_tokens, self.cached_tokens)

    def _count_tokens(self, output: RequestOutput, tokens: int) -> None:
        now = time.perf_counter()
        if self.tokens == 0:
            self._begin(now, output)
        else:
            for _ in range(tokens):
                self._metrics.itl.observe((now - self._last) / tokens)
        self._last = now
        self.tokens += tokens
        self._steps += 1
        self._metrics.generation_tokens.inc(tokens)

    def _begin(self, now: float, output: RequestOutput) -> None:
        """The first tokens are there. Only the engine knows how much of the time it worked."""
        waited = now - self._arrived
        self._first = now
        self.prefill_seconds = min(output.slot_ms / 1e3, waited)
        self.queue_seconds = waited - self.prefill_seconds
        self._metrics.ttft.observe(waited)
        self._metrics.prefill.observe(self.prefill_seconds)
        self._metrics.queue.observe(self.queue_seconds)

    def __enter__(self) -> Self:
        self._metrics.started(self._submit.max_tokens)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = kind is not None and issubclass(kind, Exception)  # unlike a cancellation
        own = self._metrics
        own.e2e.observe(self.age)
        own.finished(self.finish_reason or ("error" if failed else "abort"))
        if self.tokens:
            own.decode.observe(self.decode_seconds)
            own.inference.observe(self.prefill_seconds + self.decode_seconds)
            own.output_length.observe(self.tokens)
            own.tokens_per_step.observe(self.tokens_per_step)
        if self.tokens > 1:
            own.tpot.observe(self.decode_seconds / (self.tokens - 1))
