"""What the Dockerfile and compose name exists: files, stages, flags, routes, users."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from deployment import COMPOSE, DOCKER, ENTRYPOINT, IMAGE, ROOT, dockerfile, parsed, routes

EXACT = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*")
STAGES = dockerfile.read(ROOT / "Dockerfile").stages
FALCON = COMPOSE["services"]["falcon"]


def test_the_reader_knows_stages_continued_lines_and_variables(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(
        "ARG KIND=slim\nFROM debian:$KIND AS one\n# RUN no\nRUN a \\\n    && b\n"
        "FROM ${KIND}-two AS three\nUSER 7\n"
    )
    made = dockerfile.read(file, {"KIND": "fat"})
    assert [(stage.name, stage.source) for stage in made.stages] == [
        ("one", "debian:fat"),
        ("three", "fat-two"),
    ]
    assert made.stages[0].all("RUN") == ["a && b"]
    assert dockerfile.expanded("$A${B}$C", {"A": "1", "B": "2"}) == "12"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_base_is_a_stage_or_an_exact_version(device: str) -> None:
    made = dockerfile.read(ROOT / "Dockerfile", {"DEVICE": device})
    for stage in made.stages:
        assert made.stage(stage.source) or EXACT.fullmatch(stage.source), stage.source


def test_what_is_copied_is_there_and_no_more_is_sent_to_the_builder() -> None:
    lines = [words.split() for stage in STAGES for words in stage.all("COPY")]
    copied = {s for words in lines if not words[0].startswith("--from=") for s in words[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied


def test_the_image_has_the_torch_that_is_tested() -> None:
    arguments = {argument for stage in STAGES for argument in stage.all("ARG")}
    version = re.search(r"torch==([\d.]+)", (ROOT / "Makefile").read_text())
    assert version is not None
    assert {one for one in arguments if one.startswith("TORCH=")} == {f"TORCH={version[1]}"}


def test_the_image_runs_as_a_user_of_group_0_that_owns_nothing_of_it() -> None:
    assert IMAGE.all("USER") == ["10001:0"]
    (setup,) = IMAGE.all("RUN")
    assert "--uid 10001 --gid 0" in setup
    assert "chmod -R g=u /home/falcon" in setup
    assert not any("--chown" in words for words in IMAGE.all("COPY"))


def test_the_image_starts_a_server_that_others_can_reach() -> None:
    assert ENTRYPOINT[:2] == ["falcon", "serve"]
    args = parsed(ENTRYPOINT[2:])
    assert args.host == "0.0.0.0"
    assert IMAGE.all("EXPOSE") == [str(args.port)]
    assert IMAGE.all("STOPSIGNAL") == ["SIGTERM"]


def test_the_health_check_asks_a_route_that_exists() -> None:
    program, flag, code = json.loads(IMAGE.all("HEALTHCHECK")[0].partition("CMD ")[2])
    assert (program, flag) == ("python", "-c")
    compile(code, "health check", "exec")
    found = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", code)
    assert found is not None
    assert [found[1]] == IMAGE.all("EXPOSE")
    assert found[2] in routes()


def test_compose_gives_the_server_flags_that_it_has() -> None:
    args = parsed([*ENTRYPOINT[2:], *FALCON["command"]])
    assert args.api_key_file == f"/run/secrets/{FALCON['secrets'][0]}"
    assert int(FALCON["stop_grace_period"].removesuffix("s")) > args.shutdown_timeout
    assert set(FALCON["build"]["args"]) == {"DEVICE"}


def test_compose_mounts_what_is_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = re.sub(r"\$\{\w+:-([^}]+)\}", r"\1", volume).partition(":")[0]
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists(), source
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_services_of_compose_are_confined_and_watched(name: str) -> None:
    service = COMPOSE["services"][name]
    assert EXACT.fullmatch(service["image"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "healthcheck" in service or name == "falcon"  # whose image has one


def test_prometheus_and_grafana_find_what_they_show() -> None:
    def load(path: str) -> dict[str, list[dict[str, object]]]:
        loaded: dict[str, list[dict[str, object]]] = yaml.safe_load((DOCKER / path).read_text())
        return loaded

    (job,) = load("prometheus/prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"falcon:{IMAGE.all('EXPOSE')[0]}"]}]
    (source,) = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load("grafana/provisioning/dashboards/falcon.yaml")["providers"]
    grafana = COMPOSE["services"]["grafana"]
    mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    assert provider["options"] == {"path": mounts["./grafana/dashboards"]}
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DOCKER / "grafana" / "dashboards" / Path(home).name).exists()


def test_the_linter_finds_no_fault_with_the_dockerfile() -> None:
    words = [Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
