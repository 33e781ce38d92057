"""The Kubernetes manifests and the systemd unit are valid, agree with each other and with us."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from deployment import DOCKER, ENTRYPOINT, IMAGE, MANIFESTS, UNIT, manifest, parsed, routes

OTHERS = {"kustomize.config.k8s.io", "monitoring.coreos.com"}  # no part of Kubernetes itself
PROBES = {"startup": "/readyz", "liveness": "/livez", "readiness": "/readyz"}
POD = manifest("deployment")["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_manifests_follow_their_schemas(file: Path) -> None:
    document = yaml.safe_load(file.read_text())
    if document["apiVersion"].partition("/")[0] not in OTHERS:
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_kustomize_applies_every_manifest() -> None:
    listed = manifest("kustomization")["resources"]
    assert {*listed, "kustomization.yaml"} == {file.name for file in MANIFESTS}


def test_the_pod_is_restricted() -> None:
    """What Kubernetes' profile "restricted" asks for, and a root file system nobody writes to."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {key for volume in POD["volumes"] for key in volume if key != "name"}
    assert kinds <= {"emptyDir", "secret"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(POD)
    assert POD["automountServiceAccountToken"] is False


def test_probes_ask_routes_that_exist_on_the_servers_port() -> None:
    probes = {kind: CONTAINER[f"{kind}Probe"]["httpGet"] for kind in PROBES}
    assert {kind: probe["path"] for kind, probe in probes.items()} == PROBES
    assert set(PROBES.values()) <= routes()
    (port,) = CONTAINER["ports"]
    assert [str(port["containerPort"])] == IMAGE.all("EXPOSE")
    assert {probe["port"] for probe in probes.values()} == {port["name"]}


def test_a_pod_has_time_to_end_its_answers() -> None:
    args = parsed([*ENTRYPOINT[2:], *CONTAINER["args"]])
    probe = CONTAINER["readinessProbe"]
    assert args.shutdown_delay > probe["periodSeconds"] * probe["failureThreshold"]
    assert POD["terminationGracePeriodSeconds"] > args.shutdown_delay + args.shutdown_timeout
    (keys,) = (mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "api-keys")
    assert args.api_key_file.startswith(keys["mountPath"])


def test_everything_selects_the_pods() -> None:
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        manifest("deployment")["spec"]["selector"]["matchLabels"],
        manifest("service")["spec"]["selector"],
        manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"],
        manifest("networkpolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * len(selectors)
    service, monitor = manifest("service"), manifest("servicemonitor")["spec"]
    assert monitor["selector"]["matchLabels"] == service["metadata"]["labels"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["path"] in routes()
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_the_autoscaler_follows_a_metric_that_its_rule_makes_of_ours() -> None:
    scaler = manifest("horizontalpodautoscaler")["spec"]
    name = manifest("deployment")["metadata"]["name"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": name,
    }
    text = (DOCKER / "kubernetes" / "horizontalpodautoscaler.yaml").read_text()
    commented = [line[1:] for line in text.splitlines() if line.startswith("#  ")]
    (rule,) = yaml.safe_load("\n".join(commented))["rules"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith("vllm:num_requests_waiting{")


def test_the_unit_starts_a_server_and_gives_it_time_to_end() -> None:
    lines = UNIT.read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    program, command, *words = shlex.split(settings["ExecStart"])
    assert (Path(program).name, command) == ("falcon", "serve")
    args = parsed(words)
    assert int(settings["TimeoutStopSec"]) > args.shutdown_timeout
    name = settings["LoadCredential"].partition(":")[0]
    assert args.api_key_file == f"${{CREDENTIALS_DIRECTORY}}/{name}"
    assert settings["KillMode"] == "mixed"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
@pytest.mark.parametrize("words", ["verify --man=no", "security --offline=yes --threshold=20"])
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path: Path, words: str) -> None:
    file = tmp_path / "falcon.service"
    file.write_text(UNIT.read_text().replace("/opt/falcon/bin/falcon", sys.executable))
    command = ["systemd-analyze", *words.split(), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
