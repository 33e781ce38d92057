"""What is shipped for Prometheus and Grafana works with a real Prometheus and a real server."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tiny_chat import save_chat_target

from tests.fakes import save_random_drafter
from tests.prometheus_process import Prometheus, needs_prometheus, running_prometheus
from tests.server_harness import eventually

DOCKER = Path(__file__).parent.parent / "docker"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
MODEL = "tiny"
SERVE = "import sys; from server.cli import main; sys.exit(main())"
Json = dict[str, Any]


def panels_of(file: Path) -> list[Json]:
    """Those that show something."""
    panels = json.loads(file.read_text())["panels"]
    return [panel for panel in panels if panel["type"] != "row"]


QUERIES = [
    pytest.param(target["expr"], id=f"{file.stem}: {panel['title']}: {target['refId']}")
    for file in DASHBOARDS
    for panel in panels_of(file)
    for target in panel["targets"]
]


@dataclass
class Scene:
    """A server that has worked, and the Prometheus that watched it."""

    http: httpx.Client
    prometheus: Prometheus


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    target = save_chat_target(folder / MODEL)
    drafter = save_random_drafter(target, folder / "drafter")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    words = f"serve {target} --drafter {drafter} --port {port} --speculation always --threads 1"
    with subprocess.Popen([sys.executable, "-c", SERVE, *words.split()]) as server:
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        try:
            eventually(lambda: http.get("/health").status_code == 200)
            with running_prometheus(folder, port) as prometheus:
                for _ in range(2):  # what a metric shows first is no rise yet
                    work(http)
                    wait_for_scrape(http, prometheus)
                yield Scene(http, prometheus)
        finally:
            http.close()
            server.terminate()


def work(http: httpx.Client) -> None:
    """Requests of every kind that the dashboards tell apart."""
    url = "/v1/chat/completions"
    body: Json = {"model": MODEL, "messages": [{"role": "user", "content": "over the hills"}]}
    for seed in range(6):
        more = {"seed": seed, "max_tokens": 40, "speculative": {"enabled": seed != 5}}
        assert http.post(url, json=body | more).status_code == 200
    assert http.post(url, json=body | {"stream": True, "max_tokens": 9}).status_code == 200
    assert http.post(url, json=body | {"max_tokens": -1}).status_code == 400


def wait_for_scrape(http: httpx.Client, prometheus: Prometheus) -> None:
    name = "vllm:generation_tokens_total"
    line = next(line for line in http.get("/metrics").text.splitlines() if line.startswith(name))
    eventually(lambda: prometheus.query(name) == [float(line.split()[-1])])


@needs_prometheus
@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_the_dashboards_finds_data(scene: Scene, query: str) -> None:
    for name, value in {
        "$__rate_interval": "1m",
        "$__range": "1m",
        "$model_name": MODEL,
    }.items():
        query = query.replace(name, value)
    assert "$" not in query
    assert scene.prometheus.query(query)


@needs_prometheus
@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_the_models_to_choose_from_are_found(scene: Scene, file: Path) -> None:
    variables = {v["name"]: v for v in json.loads(file.read_text())["templating"]["list"]}
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variables["model_name"]["definition"])
    assert found is not None
    assert scene.prometheus.label_values(found[2], found[1]) == [MODEL]


@needs_prometheus
def test_the_linter_finds_no_fault_but_vllms_names(scene: Scene) -> None:
    text = scene.http.get("/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    complaints = (done.stdout + done.stderr).splitlines()
    theirs = re.compile(
        r"\S+ metric names should not contain ':'"
        r'|vllm:iteration_tokens_total non-counter metrics should not have "_total" suffix'
    )
    assert [line for line in complaints if not theirs.fullmatch(line)] == []


@needs_prometheus
@pytest.mark.parametrize(
    "words", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"]
)
def test_alerts_are_sound_and_fire_when_they_should(words: str) -> None:
    done = subprocess.run(
        ["promtool", *words.split()],
        cwd=DOCKER / "prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_what_alerts_ask_for_is_there(scene: Scene) -> None:
    """A misspelt metric would be a rule that never fires."""
    rules = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        for name in re.findall(r"\b(?:falcon:|vllm:|http_)\w+", rule["expr"]):
            assert scene.prometheus.query(name), name


def test_every_alert_has_a_runbook() -> None:
    rules = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    text = (DOCKER.parent / "docs" / "operations.md").read_text()
    assert all(f"**{rule['alert']}**" in text for rule in rules)


def test_the_dashboards_are_what_their_script_writes() -> None:
    code = "import json, build; print(json.dumps(build.dashboards()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=DOCKER / "grafana",
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {file.name: file.read_text() for file in DASHBOARDS}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_panels_have_their_own_place_and_name_what_they_show(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in panels_of(file)]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)
