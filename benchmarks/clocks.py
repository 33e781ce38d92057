"""A server's own clocks beside this client's: means of a phase, from the metrics it shows.

Works with any server that has vLLM's metrics. The two differ by the way there and back, and by what
is no text: a first token may be half a character.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from .chat_client import Answer

_FIRST = "vllm:time_to_first_token_seconds"
_TOKEN = "vllm:request_time_per_output_token_seconds"
_REQUEST = "vllm:e2e_request_latency_seconds"
_NAMES = (_FIRST, _TOKEN, _REQUEST)
_TOKENS = "vllm:generation_tokens_total"


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds; `token_ms` is a request's mean between its first and its last."""

    first_token_ms: float
    token_ms: float
    request_ms: float
    tokens: int


class Clocks(msgspec.Struct, frozen=True, kw_only=True):
    server: Means
    client: Means


async def read_metrics(http: httpx.AsyncClient) -> Mapping[str, float]:
    """The server's samples by name, summed over labels; none where it shows none."""
    samples: defaultdict[str, float] = defaultdict(float)
    try:
        answer = await http.get("/metrics")
        answer.raise_for_status()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                samples[sample.name] += sample.value
    except (httpx.HTTPError, ValueError):
        return {}
    return samples


def compared(
    before: Mapping[str, float], after: Mapping[str, float], answers: Sequence[Answer]
) -> Clocks | None:
    """Both views of the requests between two readings; None unless they saw the same ones whole."""
    timed = [one for one in answers if one.pieces and one.tokens > 1]
    is_whole = len(timed) == len(answers) > 0

    def gain(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    if not is_whole or {gain(f"{name}_count") for name in _NAMES} != {len(answers)}:
        return None
    first, token, request = (1e3 * gain(f"{name}_sum") / len(answers) for name in _NAMES)
    return Clocks(
        server=Means(
            first_token_ms=first,
            token_ms=token,
            request_ms=request,
            tokens=round(gain(_TOKENS)),
        ),
        client=Means(
            first_token_ms=1e3 * fmean(one.pieces[0][0] - one.start for one in timed),
            token_ms=1e3 * fmean(_seconds_between(one) / (one.tokens - 1) for one in timed),
            request_ms=1e3 * fmean(one.end - one.start for one in timed),
            tokens=sum(one.tokens for one in timed),
        ),
    )


def _seconds_between(answer: Answer) -> float:
    return answer.pieces[-1][0] - answer.pieces[0][0]


def in_words(clocks: Clocks) -> str:
    """One line for people."""
    here, there = clocks.client, clocks.server
    return (
        "mean ms by this client's clock and by the server's own: "
        f"first token {here.first_token_ms:.1f}, {there.first_token_ms:.1f}; "
        f"then a token {here.token_ms:.2f}, {there.token_ms:.2f}; "
        f"request {here.request_ms:.1f}, {there.request_ms:.1f}; "
        f"tokens {here.tokens}, {there.tokens}"
    )
