"""What Ray Serve is told for the arguments of `server.replicas:build`, and what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings_error import SettingsError

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make replicas"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's import gives some
]

EXAMPLE = Path(__file__).parent.parent / "docker" / "ray.yaml"


def deployments(**arguments: Any) -> tuple[Any, Any]:
    """The front's and the replicas'."""
    from server.replicas import build

    front = build({"allow-unauthenticated": "true"} | arguments)._bound_deployment
    return front, front.init_args[0]._bound_deployment


def test_flags_have_the_names_and_the_checks_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "falcon.yaml").write_text("max-num-seqs: 5\nqueue-timeout: 7\n")
    arguments = {"config": str(tmp_path / "falcon.yaml"), "max-num-seqs": "3", "threads": 2}
    front, replica = deployments(model="somewhere", served_model_name="a,b", **arguments)
    [flags] = replica.init_args
    assert (flags["max_num_seqs"], flags["queue_timeout"]) == (3, 7.0)
    assert flags["served_model_name"] == ["a", "b"]
    assert flags["model"] == str(Path("somewhere").absolute())
    assert front.init_args[1] == flags
    assert replica.ray_actor_options["num_cpus"] == 2
    assert replica.num_replicas == 1


def test_a_replica_takes_what_it_would_refuse_itself() -> None:
    _, replica = deployments(**{"max-num-seqs": 3, "max-num-queued-reqs": 10})
    assert replica.max_ongoing_requests > 13


def test_replicas_come_and_go_with_the_requests_where_there_is_a_most() -> None:
    _, replica = deployments(min_replicas="2", max_replicas="6", **{"max-num-seqs": 3})
    scaling = replica._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 6)
    assert scaling.target_ongoing_requests == 3


def test_a_gpu_is_asked_for_where_one_is_needed() -> None:
    assert deployments(device="cuda")[1].ray_actor_options["num_gpus"] == 1
    assert deployments(device="cuda", num_gpus="0.5")[1].ray_actor_options["num_gpus"] == 0.5
    assert deployments()[1].ray_actor_options["num_gpus"] == 0
    split = {"device": "cuda", "tensor-parallel-size": 2}
    assert deployments(**split)[1].ray_actor_options["num_gpus"] == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"max-num-seq": 3}, "unknown flag 'max_num_seq'; did you mean max_num_seqs"),
        ({"max-num-seqs": "many"}, "arguments, 'max_num_seqs': invalid int value"),
        ({"queue-timeout": -1}, "--queue-timeout -1: use 0 or more"),
        ({"port": 9000}, "'port': Ray Serve listens"),
        ({"allow-unauthenticated": "false"}, "no API key is set"),
        ({"replicas": 0}, "arguments: Expected `int` >= 1 - at `\\$.replicas`"),
        ({"replicas": 2, "max_replicas": 3}, "leave one out"),
        ({"min_replicas": 2}, "need max_replicas"),
        ({"pipeline-parallel-size": 2}, "set --tensor-parallel-size"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        deployments(**arguments)


def test_the_example_is_what_ray_and_the_server_take(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    told = yaml.safe_load(EXAMPLE.read_text())
    [application] = ServeDeploySchema.model_validate(told).applications
    assert application.import_path == "server.replicas:build"
    (tmp_path / "keys").write_text("key\n")
    arguments = application.args | {"api-key-file": str(tmp_path / "keys")}
    front, replica = deployments(**arguments)
    names = {deployment.name for deployment in application.deployments}
    assert names <= {front.name, replica.name}
