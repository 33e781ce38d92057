"""Metrics carry vLLM's names, and their totals are the sums of what responses said."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.messages import RequestOutput, SamplingParams, StepReport, Submit
from server import buckets
from server.metrics import Metrics
from server.request_metrics import RequestClock
from server.settings import Limits
from tests.server_harness import Running, build_model_folder, eventually, running_server

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
SUBMIT = Submit("r", [1, 2, 3], 4, SamplingParams(), [])
IDLE = StepReport([], 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder) as running:
        yield running


def parse(text: str) -> Samples:
    """All samples by name and labels, those that are always the same left out."""
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k not in COMMON))): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


COMMON = {"model_name", "engine"}


def scrape(server: Running) -> Samples:
    return parse(server.get("/metrics").text)


def started(metrics: Metrics, arrived: float | None = None) -> RequestClock:
    now = time.perf_counter()
    (clock,) = metrics.clocks([SUBMIT], 1, now if arrived is None else arrived)
    return clock


def labelled(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def answers(server: Running) -> float:
    """HTTP answers counted so far: one is once its last byte was sent."""
    return sum(
        value for (name, _), value in scrape(server).items() if name == "http_requests_total"
    )


def test_totals_are_the_sums_of_all_usage_objects(server: Running) -> None:
    bodies = [
        server.chat({"say": "hello world", "step": 3}),
        server.chat({"say": "hello STOP and more", "step": 9}, stop="STOP"),
        server.chat({"say": "hello world hello world"}, max_tokens=4),
        server.chat({"say": "hello world"}, n=3),
    ]
    usages = [server.post(body).json()["usage"] for body in bodies]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    usages += [server.events(body | options)[-2]["usage"] for body in bodies]
    for body in bodies:  # their tokens count too, though nobody is told how many
        assert server.post(body | {"stream": True}).status_code == 200
    usages += usages[: len(bodies)]
    eventually(lambda: answers(server) == 12)
    samples = scrape(server)
    prompt = sum(usage["prompt_tokens"] for usage in usages)
    generated = sum(usage["completion_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert samples["vllm:prompt_tokens_total", ()] == prompt
    assert samples["vllm:generation_tokens_total", ()] == generated
    assert samples["vllm:prompt_tokens_cached_total", ()] == cached
    by_source = "vllm:prompt_tokens_by_source_total"
    assert samples[labelled(by_source, source="local_cache_hit")] == cached
    assert samples[labelled(by_source, source="local_compute")] == prompt - cached
    for name, total, count in (
        ("request_prompt_tokens", prompt, 12),
        ("request_prefill_kv_computed_tokens", prompt - cached, 12),
        ("request_generation_tokens", generated, 18),
    ):
        assert samples[f"vllm:{name}_sum", ()] == total
        assert samples[f"vllm:{name}_count", ()] == count
    assert samples[labelled("vllm:request_success_total", finished_reason="stop")] == 15
    assert samples[labelled("vllm:request_success_total", finished_reason="length")] == 3


def test_tokens_of_a_stream_that_breaks_off_count_as_far_as_they_were_told(
    server: Running,
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    order = {"say": "hello world " * 4, "step": 1, "error_after": 4}
    *chunks, error, _ = server.events(server.chat(order, stream_options=options))
    assert error["error"]["code"] == "generation_failed"
    usage = chunks[-1]["usage"]
    eventually(lambda: scrape(server)["vllm:e2e_request_latency_seconds_count", ()] == 1)
    samples = scrape(server)
    assert samples["vllm:generation_tokens_total", ()] == usage["completion_tokens"] == 3
    assert samples["vllm:request_generation_tokens_sum", ()] == 3
    assert samples["vllm:prompt_tokens_total", ()] == usage["prompt_tokens"]


def test_tokens_that_a_client_took_before_it_left_count(server: Running) -> None:
    """The engine gives five tokens and falls silent; then the client leaves."""
    body = server.chat({"say": "hello world " * 4, "step": 1, "stall_after": 5}, stream=True)
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_text()
        eventually(lambda: scrape(server)["vllm:generation_tokens_total", ()] == 5)
        next(chunks)
    aborted = labelled("vllm:request_success_total", finished_reason="abort")
    eventually(lambda: scrape(server)[aborted] == 1)
    prompt = server.post(body | {"stream": False, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
    samples = scrape(server)
    assert samples["vllm:generation_tokens_total", ()] == 5 + 1
    assert samples["vllm:request_generation_tokens_sum", ()] == 5 + 1
    assert samples["vllm:prompt_tokens_total", ()] == 2 * prompt


def test_a_request_that_never_got_a_token_counts_none(server: Running) -> None:
    server.leave(server.chat({"say": "hello", "stall_after": 0}))
    aborted = labelled("vllm:request_success_total", finished_reason="abort")
    eventually(lambda: scrape(server)[aborted] == 1)
    samples = scrape(server)
    assert samples["vllm:prompt_tokens_total", ()] == 0
    assert samples["vllm:time_to_first_token_seconds_count", ()] == 0
    assert samples["vllm:request_generation_tokens_count", ()] == 0
    assert samples["vllm:e2e_request_latency_seconds_count", ()] == 1


def test_a_requests_times_add_up(server: Running) -> None:
    usage = server.post(server.chat({"say": "hello world", "step": 2})).json()["usage"]
    samples = scrape(server)

    def total(name: str) -> float:
        assert samples[f"vllm:{name}_seconds_count", ()] == 1
        return samples[f"vllm:{name}_seconds_sum", ()]

    first, decode = total("time_to_first_token"), total("request_decode_time")
    prefill, tokens = total("request_prefill_time"), usage["completion_tokens"]
    assert first == pytest.approx(total("request_queue_time") + prefill)
    assert total("request_inference_time") == pytest.approx(prefill + decode)
    assert first + decode <= total("e2e_request_latency")
    assert total("request_time_per_output_token") == pytest.approx(decode / (tokens - 1))
    assert samples["vllm:inter_token_latency_seconds_sum", ()] == pytest.approx(decode)
    assert samples["vllm:inter_token_latency_seconds_count", ()] == tokens - 2
    assert samples["falcon:request_tokens_per_step_sum", ()] == pytest.approx(
        tokens / -(-tokens // 2)
    )


def test_the_wait_for_a_slot_is_told_from_the_work_of_the_engine() -> None:
    metrics = Metrics("m")
    with started(metrics, arrived=0.0) as clock:  # long ago
        clock.arrived(RequestOutput("r", [7], None, 0, 0, slot_ms=1500.0), tokens=1)
        clock.finish_reason = "stop"
    samples = parse(metrics.exposition().decode())
    first = samples["vllm:time_to_first_token_seconds_sum", ()]
    assert samples["vllm:request_prefill_time_seconds_sum", ()] == 1.5
    assert samples["vllm:request_queue_time_seconds_sum", ()] == pytest.approx(first - 1.5)


def test_a_prompt_that_was_read_for_no_token_counts() -> None:
    metrics = Metrics("m")
    with started(metrics) as clock:
        clock.arrived(RequestOutput("r", [], None, 0, 0), tokens=0)
        clock.arrived(RequestOutput("r", [], "length", 0, 0, cached_tokens=2), tokens=0)
        clock.finish_reason = "length"
    samples = parse(metrics.exposition().decode())
    assert samples["vllm:prompt_tokens_total", ()] == 3
    assert samples["vllm:prompt_tokens_cached_total", ()] == 2
    assert samples["vllm:time_to_first_token_seconds_count", ()] == 0


def test_requests_in_flight_are_gauged_and_an_idle_engine_holds_nothing(server: Running) -> None:
    body = server.chat({"say": "hello", "forever": True, "step": 1, "delay": 0.02}, stream=True)
    with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_bytes()  # closes the connection when it is collected
        next(chunks)
        eventually(lambda: scrape(server)["vllm:num_requests_running", ()] == 1)
        assert scrape(server)["vllm:kv_cache_usage_perc", ()] == 0.25
    eventually(lambda: scrape(server)["vllm:num_requests_running", ()] == 0)
    samples = scrape(server)
    assert samples["vllm:num_requests_waiting", ()] == 0
    assert samples["vllm:kv_cache_usage_perc", ()] == 0


@pytest.mark.parametrize("is_stream", [True, False])
def test_refusals_are_counted_by_status_and_code(folder: Path, is_stream: bool) -> None:
    endless = {"say": "hello", "forever": True, "delay": 0.02}
    late = Limits(queue_timeout=0.3)
    with running_server(folder, limits=late) as server:
        silent = server.chat({"say": "hello", "stall_after": 0}, stream=is_stream)
        assert server.post(silent).status_code == 504
        timed_out = scrape(server)
    full = Limits(max_num_queued_reqs=0)
    with running_server(folder, limits=full) as server, ExitStack() as open_:
        assert server.post(server.chat(max_tokens=0)).status_code == 400
        for _ in range(4):
            body = server.chat(endless, stream=True)
            open_.enter_context(server.client.stream("POST", "/v1/chat/completions", json=body))
        assert server.post(server.chat(stream=is_stream)).status_code == 429
        samples = scrape(server)
    name, path = "falcon:request_errors_total", "/v1/chat/completions"
    assert timed_out[labelled(name, status="504", code="queue_timeout")] == 1
    assert samples[labelled(name, status="429", code="queue_full")] == 1
    assert samples[labelled(name, status="400", code="invalid_request_error")] == 1
    assert samples[labelled(name, status="503", code="engine_unavailable")] == 0
    assert samples[labelled("vllm:admission_rejections_total", reason="max_num_queued_reqs")] == 1
    for status, own in (("400", samples), ("429", samples), ("504", timed_out)):
        key = labelled("http_requests_total", handler=path, method="POST", status=status)
        assert own[key] == 1


def test_an_error_inside_a_stream_is_counted_once_and_the_answer_as_200(server: Running) -> None:
    *_, error, _ = server.events(server.chat({"say": "hello", "step": 1, "error_after": 2}))
    assert error["error"]["code"] == "generation_failed"
    eventually(lambda: answers(server) == 1)
    samples = scrape(server)
    name, path = "falcon:request_errors_total", "/v1/chat/completions"
    assert samples[labelled(name, status="500", code="generation_failed")] == 1
    assert samples[labelled(name, status="500", code="internal_error")] == 0
    assert samples[labelled("http_requests_total", handler=path, method="POST", status="200")] == 1
    assert samples[labelled("vllm:request_success_total", finished_reason="error")] == 1


def test_what_clients_make_up_makes_no_labels(server: Running) -> None:
    server.get("/no/such/route")
    server.get("/v1/models/no-such-model")
    server.client.request("BREW", "/v1/models")
    server.post(server.chat() | {"model": "made-up"})
    eventually(lambda: answers(server) == 4)
    text = server.get("/metrics").text
    assert not any(word in text for word in ("BREW", "made-up", "no-such", "no/such"))
    samples = parse(text)
    for handler, method in (("none", "GET"), ("/v1/models/{name:path}", "GET")):
        key = labelled("http_requests_total", handler=handler, method=method, status="404")
        assert samples[key] == 1


def test_what_asks_after_the_server_is_not_traffic(server: Running) -> None:
    server.get("/health")
    assert answers(server) == 0


def test_what_is_served_and_whether_it_is_ready_shows(folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_server(folder, "--gate", str(gate)) as server:
        samples = scrape(server)
        assert samples["falcon:ready", ()] == 1
        facts = next(dict(labels) for name, labels in samples if name == "falcon:build_info")
        assert (
            facts.items()
            >= {"dtype": "float32", "device": "cpu", "speculation": "prompt lookup"}.items()
        )
        blocks = labelled(
            "vllm:cache_config_info",
            block_size="256",
            num_gpu_blocks="4",
            enable_prefix_caching="True",
        )
        assert samples[blocks] == 1
        for process in ("process", "falcon_engine_process"):
            assert samples[f"{process}_resident_memory_bytes", ()] > 1e6
        os.kill(server.worker_pid(), signal.SIGKILL)
        eventually(lambda: scrape(server)["falcon:ready", ()] == 0)
        gate.touch()
        eventually(lambda: scrape(server)["falcon:ready", ()] == 1)
        assert scrape(server)["falcon:engine_restarts_total", ()] == 1


def test_metrics_tell_that_the_model_is_being_loaded(folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_server(folder, "--loads-until", str(gate), waits=False) as server:
        assert scrape(server)["falcon:ready", ()] == 0
        assert server.post(server.chat()).status_code == 503
        gate.touch()
        eventually(lambda: scrape(server)["falcon:ready", ()] == 1)
        samples = scrape(server)
    assert samples[labelled("falcon:request_errors_total", status="503", code="model_loading")] == 1


def test_speculation_is_counted_as_the_engine_did_it() -> None:
    metrics = Metrics("m")
    report = StepReport(
        outputs=[RequestOutput("a", [1, 2, 3, 4], None, 8, 3), RequestOutput("b", [5], None, 0, 0)],
        running=4,
        waiting=0,
        passes=4,
        drafted=24,
        accepted_lengths=[3, 1, 0],
        depths=[2, 1, 0],
        plans={"8x2": 3, "0x0": 3},
        plain={"request": 2, "fault": 1},
    )
    metrics.observe_step(report)
    samples = parse(metrics.exposition().decode())
    positions = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert [samples[labelled(positions, position=str(at))] for at in range(3)] == [2, 1, 1]
    depths = "falcon:tree_depth_accepted_total"
    assert [samples[labelled(depths, depth=str(at))] for at in range(3)] == [3, 2, 1]
    assert samples["vllm:spec_decode_num_drafts_total", ()] == 3
    assert samples["vllm:spec_decode_num_draft_tokens_total", ()] == 24
    assert samples["vllm:spec_decode_num_accepted_tokens_total", ()] == 4
    assert samples[labelled("falcon:accept_length_bucket", le="1.0")] == 2
    assert samples["falcon:accept_length_sum", ()] == 4
    assert samples["falcon:drafter_passes_total", ()] == 4
    assert samples[labelled("falcon:plan_steps_total", plan="8x2")] == 3
    assert samples[labelled("falcon:plan_steps_total", plan="0x0")] == 3
    reasons = {
        reason: samples[labelled("falcon:plain_steps_total", reason=reason)]
        for reason in ("request", "fault", "load", "no_match", "no_drafter")
    }
    assert reasons == {"request": 2, "fault": 1, "load": 0, "no_match": 0, "no_drafter": 0}
    assert samples["vllm:iteration_tokens_total_sum", ()] == 5


def test_what_clients_predicted_is_counted_apart() -> None:
    metrics = Metrics("m")
    output = RequestOutput(
        "a", [1, 2, 3], None, 5, 2, sources=["predicted"] * 2 + ["bonus"], predicted=5
    )
    metrics.observe_step(StepReport([msgspec.structs.replace(output, rejected_predicted=3)], 1, 0))
    samples = parse(metrics.exposition().decode())
    outcomes = {
        outcome: samples[labelled("falcon:predicted_tokens_total", outcome=outcome)]
        for outcome in ("verified", "accepted", "rejected")
    }
    assert outcomes == {"verified": 5, "accepted": 2, "rejected": 3}


def test_a_step_is_timed_for_what_it_did() -> None:
    metrics = Metrics("m")
    plain = StepReport([], 1, 0, prefill_ms=0.01, draft_ms=0.02, verify_ms=3.0, host_ms=1.0)
    metrics.observe_step(plain)
    metrics.observe_step(
        msgspec.structs.replace(plain, prefill_ms=5.0, computed_tokens=9, cached_tokens=3, passes=2)
    )
    metrics.observe_step(IDLE)
    samples = parse(metrics.exposition().decode())
    seconds = {
        part: (
            samples[f"falcon:step_{part}_seconds_count", ()],
            samples[f"falcon:step_{part}_seconds_sum", ()],
        )
        for part in ("prefill", "draft", "verify", "host")
    }
    assert seconds["prefill"] == (1, 0.005)
    assert seconds["draft"] == (1, pytest.approx(0.00002))
    assert seconds["verify"] == (2, 0.006)
    assert seconds["host"] == (2, 0.002)
    assert samples["vllm:prefix_cache_queries_total", ()] == 12
    assert samples["vllm:prefix_cache_hits_total", ()] == 3
    assert samples["vllm:iteration_tokens_total_count", ()] == 1


def test_incidents_are_counted_and_a_dead_engine_runs_nothing() -> None:
    metrics = Metrics("m")
    metrics.observe_step(StepReport([], 1, 0))
    with started(metrics):
        for incident in ("restart", "replay", "replay", "quarantine"):
            metrics.observe_incident(incident)  # type: ignore[arg-type]  # the words are right
        samples = parse(metrics.exposition().decode())
    assert samples["falcon:engine_restarts_total", ()] == 1
    assert samples["falcon:requests_replayed_total", ()] == 2
    assert samples["falcon:requests_quarantined_total", ()] == 1
    assert samples["vllm:num_requests_running", ()] == 0
    assert samples["vllm:num_requests_waiting", ()] == 1


def test_vllms_metrics_have_its_labels_and_no_label_is_open() -> None:
    metrics = Metrics("m")
    with started(metrics):
        pass
    metrics.observe_step(
        StepReport([], 0, 0, drafted=1, accepted_lengths=[1], depths=[1], plans={"1x1": 1})
    )
    own = {"finished_reason", "position", "le", "source", "reason", "status", "code", "plan"}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            if sample.name.startswith(("vllm:", "falcon:")):
                assert sample.labels["model_name"] == "m"
                if sample.name != "vllm:admission_rejections_total":
                    assert sample.labels["engine"] == "0"
            assert set(sample.labels) <= {"model_name", "engine", "depth", "outcome", *own}


VLLM_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5)
VLLM_FIRST_LONG = (10, 20, 40, 80, 160, 640, 2560)
VLLM_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
VLLM_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


@pytest.mark.parametrize(
    ("ours", "vllms"),
    [
        (buckets.TTFT, {*VLLM_FIRST, *VLLM_FIRST_LONG}),
        (buckets.PER_TOKEN, {*VLLM_TOKEN, 20, 40, 80}),
        (buckets.REQUEST, {*VLLM_REQUEST, 1920, 7680}),
        (buckets.STEP_TOKENS, {1, 8, *(2**power for power in range(4, 15))}),
        (buckets.TOKENS, {1, 2, 5, 10, 20, 50, 1000, 5000, 10000, 100000}),
    ],
)
def test_buckets_are_vllms_and_finer(ours: tuple[float, ...], vllms: set[float]) -> None:
    assert vllms <= set(ours)
    assert list(ours) == sorted(set(ours))


def test_a_token_in_less_than_10_ms_has_buckets_of_its_own() -> None:
    assert sum(edge < 0.01 for edge in buckets.PER_TOKEN) >= 8
