"""Metrics carry vLLM's names, and their totals are the sums of what responses said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.messages import StepReport
from server.metrics import ITL_BUCKETS, Metrics
from tests.server_harness import Running, build_model_folder, eventually, running_server

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_server(build_model_folder(tmp_path_factory.mktemp("model"))) as running:
        yield running


def parse(text: str) -> Samples:
    """All samples by name and labels, the model's name left out."""
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k != "model_name"))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def scrape(server: Running) -> Samples:
    return parse(server.get("/metrics").text)


def test_totals_are_the_sums_of_all_usage_objects(server: Running) -> None:
    bodies = [
        server.chat({"say": "hello world", "step": 3}),
        server.chat({"say": "hello STOP and more", "step": 9}, stop="STOP"),
        server.chat({"say": "hello world hello world"}, max_tokens=4),
    ]
    usages = [server.post(body).json()["usage"] for body in bodies]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    usages += [server.events(body | options)[-2]["usage"] for body in bodies]
    samples = scrape(server)
    for kind, name in (("prompt", "prompt"), ("completion", "generation")):
        total = sum(usage[f"{kind}_tokens"] for usage in usages)
        assert samples[f"vllm:{name}_tokens_total", ()] == total
    assert samples["vllm:request_success_total", (("finished_reason", "stop"),)] == 4
    assert samples["vllm:request_success_total", (("finished_reason", "length"),)] == 2
    assert samples["vllm:time_to_first_token_seconds_count", ()] == 6
    assert samples["vllm:e2e_request_latency_seconds_count", ()] == 6
    generated = samples["vllm:generation_tokens_total", ()]
    assert 0 < samples["vllm:inter_token_latency_seconds_count", ()] < generated
    assert samples["vllm:spec_decode_num_drafts_total", ()] > 6
    assert samples["falcon:verify_seconds_total", ()] > 0


def test_requests_in_flight_are_gauged_and_aborts_counted(server: Running) -> None:
    aborted = ("vllm:request_success_total", (("finished_reason", "abort"),))
    before = scrape(server).get(aborted, 0.0)
    body = server.chat({"say": "hello", "forever": True, "step": 1, "delay": 0.02}, stream=True)
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_bytes()  # closes the connection when it is collected
        next(chunks)
        eventually(lambda: scrape(server)["vllm:num_requests_running", ()] == 1)
    eventually(lambda: scrape(server).get(aborted, 0.0) == before + 1)
    samples = scrape(server)
    assert samples["vllm:num_requests_running", ()] == 0
    assert samples["vllm:num_requests_waiting", ()] == 0


def test_accepted_tokens_are_counted_by_depth() -> None:
    metrics = Metrics("m")
    metrics.observe_step(StepReport([], 2, 0, 5.0, 1.0, 2.0, 3.0, 4, 24, [3, 1, 0], 0, 0.5))
    samples = parse(metrics.exposition().decode())
    by_depth = [
        samples["vllm:spec_decode_num_accepted_tokens_per_pos_total", (("position", str(depth)),)]
        for depth in range(3)
    ]
    assert by_depth == [2, 1, 1]
    assert samples["vllm:spec_decode_num_drafts_total", ()] == 3
    assert samples["vllm:spec_decode_num_draft_tokens_total", ()] == 24
    assert samples["vllm:spec_decode_num_accepted_tokens_total", ()] == 4
    assert samples["vllm:kv_cache_usage_perc", ()] == 0.5
    assert samples["falcon:drafter_passes_total", ()] == 4
    assert samples["falcon:host_seconds_total", ()] == 0.003


def test_incidents_are_counted_and_a_dead_engine_runs_nothing() -> None:
    metrics = Metrics("m")
    metrics.observe_step(StepReport([], 1, 0, 0, 0, 0, 0, 0, 0, [], 0, 0))
    with metrics.request_started():
        for incident in ("restart", "replay", "replay", "quarantine"):
            metrics.observe_incident(incident)  # type: ignore[arg-type]  # the words are right
        samples = parse(metrics.exposition().decode())
    assert samples["falcon:engine_restarts_total", ()] == 1
    assert samples["falcon:requests_replayed_total", ()] == 2
    assert samples["falcon:requests_quarantined_total", ()] == 1
    assert samples["vllm:num_requests_running", ()] == 0
    assert samples["vllm:num_requests_waiting", ()] == 1


def test_every_metric_is_labelled_with_the_model_alone_or_a_closed_set() -> None:
    metrics = Metrics("m")
    with metrics.request_started():
        pass
    metrics.observe_step(StepReport([], 0, 0, 0, 0, 0, 0, 0, 1, [1], 0, 0))
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == "m"
            assert set(sample.labels) <= {"model_name", "finished_reason", "position", "le"}


def test_buckets_resolve_milliseconds_and_rise() -> None:
    assert {0.0005, 0.001, 0.0075, 0.01, 80} <= set(ITL_BUCKETS)
    assert list(ITL_BUCKETS) == sorted(ITL_BUCKETS)
