"""What is measured of each step of the engine, as the engine did it.

`spec_decode_num_draft_tokens` counts a tree's nodes verified, so accepted / draft_tokens is low by
construction: compare acceptance *length*, 1 + accepted / drafts. `position` is a token's place
among those that one step accepted; `falcon:tree_depth_accepted` tells how far down its tree a
request came.
"""

from __future__ import annotations

from typing import get_args

from engine.messages import PlainReason, StepReport

from . import buckets
from .meters import Meters


class StepMetrics:
    """Times, speculation and the cache; `running` and `kv_usage` are those of the last step."""

    def __init__(self, make: Meters) -> None:
        self.running = 0
        self.kv_usage = 0.0
        self._define_engine(make)
        self._define_speculation(make)

    def _define_engine(self, make: Meters) -> None:
        self._queries = make.counter("vllm:prefix_cache_queries", "Prompt tokens looked up.")
        self._hits = make.counter("vllm:prefix_cache_hits", "Prompt tokens found in the cache.")
        self._iteration = make.histogram(
            "vllm:iteration_tokens_total",
            "Prompt tokens run and tokens given in a step.",
            buckets.STEP_TOKENS,
        )
        self._times = {
            part: make.histogram(f"falcon:step_{part}_seconds", text, buckets.STEP)
            for part, text in {
                "prefill": "Time of a step on prompts.",
                "draft": "Time of a step drafting.",
                "verify": "Time of a step in the target's forwards.",
                "host": "Rest of a step's time.",
            }.items()
        }

    def _define_speculation(self, make: Meters) -> None:
        self._drafts = make.counter("vllm:spec_decode_num_drafts", "Trees verified.")
        self._draft_tokens = make.counter(
            "vllm:spec_decode_num_draft_tokens", "Tree nodes verified."
        )
        self._accepted = make.counter(
            "vllm:spec_decode_num_accepted_tokens", "Drafted and accepted."
        )
        self._accepted_at = make.counters(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens by their place in the step.",
            "position",
        )
        self._reached = make.counters(
            "falcon:tree_depth_accepted",
            "Drafted trees in which a node of this depth was right; the root, 0, always is.",
            "depth",
        )
        self._accept_length = make.histogram(
            "falcon:accept_length",
            "Drafted tokens accepted of a tree, the bonus token not counted.",
            buckets.ACCEPT_LENGTHS,
        )
        predicted = make.counters(
            "falcon:predicted_tokens", "Tokens that clients predicted, by what became.", "outcome"
        )
        self._predicted = {o: predicted(o) for o in ("verified", "accepted", "rejected")}
        self._passes = make.counter("falcon:drafter_passes", "Passes of the drafter, or parts.")
        self._plans = make.counters(
            "falcon:plan_steps",
            "Request steps by what was drafted: nodes x passes, or a word.",
            "plan",
        )
        self._plain = make.counters(
            "falcon:plain_steps", "Request steps without a draft, by why.", "reason"
        )
        for reason in get_args(PlainReason):
            self._plain(reason)

    def observe(self, report: StepReport) -> None:
        """Count one step of the engine."""
        self.running = report.running
        self.kv_usage = report.kv_usage
        self._queries.inc(report.cached_tokens + report.computed_tokens)
        self._hits.inc(report.cached_tokens)
        given = sum(len(output.token_ids) for output in report.outputs)
        if tokens := given + report.computed_tokens:
            self._iteration.observe(tokens)
        for part, milliseconds in (
            ("prefill", report.prefill_ms if report.computed_tokens else 0.0),
            ("draft", report.draft_ms if report.passes else 0.0),
            ("verify", report.verify_ms),
            ("host", report.host_ms),
        ):
            if milliseconds:
                self._times[part].observe(milliseconds / 1e3)
        self._observe_speculation(report)

    def _observe_speculation(self, report: StepReport) -> None:
        self._passes.inc(report.passes)
        self._drafts.inc(len(report.accepted_lengths))
        self._draft_tokens.inc(report.drafted)
        self._accepted.inc(sum(report.accepted_lengths))
        for length in report.accepted_lengths:
            self._accept_length.observe(length)
        for place in range(max(report.accepted_lengths, default=0)):
            reached = sum(length > place for length in report.accepted_lengths)
            self._accepted_at(str(place)).inc(reached)
        for depth in range(max(report.depths, default=-1) + 1):
            self._reached(str(depth)).inc(sum(deepest >= depth for deepest in report.depths))
        for output in report.outputs:
            self._predicted["verified"].inc(output.predicted)
            self._predicted["accepted"].inc(output.sources.count("predicted"))
            self._predicted["rejected"].inc(output.rejected_predicted)
        for plan, count in report.plans.items():
            self._plans(plan).inc(count)
        for reason, count in report.plain.items():
            self._plain(reason).inc(count)
