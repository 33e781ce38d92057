"""Both clocks of a phase, from metrics and answers made by hand."""

from __future__ import annotations

import httpx
import pytest

from benchmarks.chat_client import Answer, Usage
from benchmarks.clocks import compared, in_words, read_metrics

BEFORE = """
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 7
vllm:time_to_first_token_seconds_sum{engine="0"} 1.5
vllm:time_to_first_token_seconds_count{engine="0"} 7
"""
AFTER = """
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_sum{engine="0"} 1.75
vllm:time_to_first_token_seconds_count{engine="0"} 8
vllm:time_to_first_token_seconds_sum{engine="1"} 0.25
vllm:time_to_first_token_seconds_count{engine="1"} 1
# TYPE vllm:request_time_per_output_token_seconds histogram
vllm:request_time_per_output_token_seconds_sum 0.2
vllm:request_time_per_output_token_seconds_count 2
# TYPE vllm:e2e_request_latency_seconds histogram
vllm:e2e_request_latency_seconds_sum 4.0
vllm:e2e_request_latency_seconds_count 2
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total 30
"""


def answer(start: float, first: float, last: float, tokens: int) -> Answer:
    pieces = ((start + first, 3), (start + last, 5))
    return Answer("completed", start, start + last + 0.1, "", pieces, Usage(tokens))


ANSWERS = [answer(10.0, 0.3, 1.3, 11), answer(20.0, 0.5, 2.5, 21)]


async def metrics(text: str, status: int = 200) -> dict[str, float]:
    transport = httpx.MockTransport(lambda request: httpx.Response(status, text=text))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        return dict(await read_metrics(http))


async def test_means_are_those_of_the_phase_on_both_sides() -> None:
    clocks = compared(await metrics(BEFORE), await metrics(AFTER), ANSWERS)
    assert clocks is not None
    assert clocks.server.first_token_ms == pytest.approx(250)
    assert clocks.server.token_ms == pytest.approx(100)
    assert clocks.server.request_ms == pytest.approx(2000)
    assert clocks.server.tokens == 30
    assert clocks.client.first_token_ms == pytest.approx(400)
    assert clocks.client.token_ms == pytest.approx(100)
    assert clocks.client.request_ms == pytest.approx(2000)
    assert clocks.client.tokens == 32
    assert "first token 400.0, 250.0; then a token 100.00, 100.00" in in_words(clocks)


async def test_nothing_is_compared_that_only_one_side_saw() -> None:
    before, after = await metrics(BEFORE), await metrics(AFTER)
    refused = Answer("refused", 1.0, 2.0)
    assert compared(before, after, [*ANSWERS, refused]) is None
    assert compared(before, after, ANSWERS[:1]) is None
    assert compared(before, after, []) is None


@pytest.mark.parametrize(("text", "status"), [("", 404), ("not {metrics", 200), ("", 200)])
async def test_a_server_without_metrics_is_measured_without(text: str, status: int) -> None:
    nothing = await metrics(text, status)
    assert nothing == {}
    assert compared(nothing, nothing, ANSWERS) is None
