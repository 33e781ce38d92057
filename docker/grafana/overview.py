"""What an operator looks at first."""

from __future__ import annotations

from panels import Panel, mean, quantiles, rate, select, share_within

_ERRORS = "falcon:request_errors_total"
_REFUSED = 'status=~"429|503|504"'
_FAILED = 'status=~"5.."'
_TTFT = "vllm:time_to_first_token_seconds"
_TPOT = "vllm:request_time_per_output_token_seconds"
_ANSWERED = rate("vllm:request_success_total")

ROWS = {
    "At a glance": [
        Panel(
            "Ready",
            "percentunit",
            {"": f"avg ({select('falcon:ready')})"},
            "The share of servers that can serve requests.",
            kind="stat",
            floor=1,
        ),
        Panel("Requests", "reqps", {"": _ANSWERED}, kind="stat"),
        Panel("Output", "suffix: tok/s", {"": rate("vllm:generation_tokens_total")}, kind="stat"),
        Panel(
            "Served without a 5xx",
            "percentunit",
            {"": f"1 - {rate(_ERRORS, more=_FAILED)} / ({_ANSWERED} > 0)"},
            "Errors inside streams that began with 200 count.",
            kind="stat",
            floor=0.99,
        ),
        Panel(
            "First token within 0.5 s",
            "percentunit",
            {"": share_within(_TTFT, 0.5)},
            kind="stat",
            floor=0.95,
        ),
        Panel(
            "25 ms or less a token",
            "percentunit",
            {"": share_within(_TPOT, 0.025)},
            "By request: its decode time over its tokens after the first.",
            kind="stat",
            floor=0.95,
        ),
    ],
    "Traffic": [
        Panel(
            "Answers by how they ended",
            "reqps",
            {"{{finished_reason}}": rate("vllm:request_success_total", "finished_reason")},
            stacked=True,
        ),
        Panel(
            "Tokens",
            "suffix: tok/s",
            {
                "prompt, {{source}}": rate("vllm:prompt_tokens_by_source_total", "source"),
                "output": rate("vllm:generation_tokens_total"),
            },
        ),
        Panel(
            "Errors told to clients",
            "reqps",
            {"{{status}} {{code}}": rate(_ERRORS, "status, code")},
            "Also those inside a stream, by the error's own status.",
            stacked=True,
        ),
    ],
    "Latency": [
        Panel("Time to first token", "s", quantiles(_TTFT)),
        Panel("Time per output token", "s", quantiles(_TPOT), "Means of requests."),
        Panel(
            "Time between tokens",
            "s",
            quantiles("vllm:inter_token_latency_seconds"),
            "A step's time is shared among the tokens that it gave.",
        ),
        Panel("Whole request", "s", quantiles("vllm:e2e_request_latency_seconds")),
    ],
    "Where a request's time goes": [
        Panel("Waiting for a slot", "s", quantiles("vllm:request_queue_time_seconds")),
        Panel("Slot to first token", "s", quantiles("vllm:request_prefill_time_seconds")),
        Panel(
            "Mean of each part",
            "s",
            {
                part: mean(f"vllm:request_{part}_time_seconds")
                for part in ("queue", "prefill", "decode")
            },
            stacked=True,
        ),
    ],
    "Load": [
        Panel(
            "Requests running and waiting",
            "short",
            {
                "running": f"sum ({select('vllm:num_requests_running')})",
                "waiting": f"sum ({select('vllm:num_requests_waiting')})",
            },
        ),
        Panel(
            "Cache in use",
            "percentunit",
            {"{{instance}}": f"max by (instance) ({select('vllm:kv_cache_usage_perc')})"},
            "Rows that running requests hold; what free slots keep is not counted.",
        ),
        Panel(
            "Prompt tokens found in the cache",
            "percentunit",
            {
                "hits": f"{rate('vllm:prefix_cache_hits_total')} / "
                f"{rate('vllm:prefix_cache_queries_total')}"
            },
        ),
        Panel(
            "Refused or timed out",
            "reqps",
            {"{{status}} {{code}}": rate(_ERRORS, "status, code", _REFUSED)},
            stacked=True,
        ),
    ],
    "Requests and processes": [
        Panel(
            "Length of prompts and answers",
            "short",
            {
                f"{name} {legend}": query
                for name in ("prompt", "generation")
                for legend, query in quantiles(f"vllm:request_{name}_tokens").items()
                if legend != "p99"
            },
        ),
        Panel(
            "HTTP answers",
            "reqps",
            {
                "{{handler}} {{status}}": "sum by (handler, status) "
                "(rate(http_requests_total[$__rate_interval]))"
            },
            "Of all models: HTTP knows none.",
        ),
        Panel(
            "Engine restarts",
            "short",
            {
                name: f"sum (increase({select(f'falcon:{metric}_total')}[$__range]))"
                for name, metric in {
                    "restarts": "engine_restarts",
                    "requests replayed": "requests_replayed",
                    "requests quarantined": "requests_quarantined",
                }.items()
            },
            "In the chosen time.",
            kind="bargauge",
        ),
        Panel(
            "Memory",
            "bytes",
            {
                "HTTP {{instance}}": "process_resident_memory_bytes and on (instance) falcon:ready",
                "engine {{instance}}": "falcon_engine_process_resident_memory_bytes "
                "and on (instance) falcon:ready",
            },
        ),
    ],
}
