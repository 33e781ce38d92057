"""Replicas on Ray Serve: `serve run server.replicas:build model=DIR replicas=2`.

    client -> Ray's proxy -> Front -> AffinityRouter -> Replica (application, engine process)

Every flag of `falcon serve` is an argument of the same name; the address is Ray's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any

import msgspec
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from engine.logs import configure

from .addresses import Address
from .connections import MAX_CONNECTIONS
from .errors import no_replica, queue_full
from .exchange import Exchange
from .front import Item, ReplicaLost, create_front
from .replica import Replica
from .settings import Limits, SettingsError, access_from, limits_from
from .sources import parse_values
from .speculative_config import BadConfig, drafting_of

EVERYWHERE = "0.0.0.0"
SPARE_REQUESTS = 64  # that a replica takes beyond its slots and its queue, to refuse them itself
HEALTH_SECONDS = 5.0
METRICS_SECONDS = 5.0
LAST_WORDS_SECONDS = 5.0  # of the front, when its replicas had to be killed
RAYS_OWN = ("host", "port", "uds", "ssl_certfile", "ssl_keyfile", "ssl_ca_certs")
PATHS = ("model", "drafter", "chat_template", "api_key_file")

Count = Annotated[int, msgspec.Meta(ge=1)]


class Scale(msgspec.Struct, frozen=True):
    """How many replicas, and what each takes of the cluster.

    With `max_replicas` there are as many as requests need, `target_ongoing_requests` (the slots,
    unless given) for each.
    """

    replicas: Count | None = None
    min_replicas: Annotated[int, msgspec.Meta(ge=0)] | None = None
    max_replicas: Count | None = None
    target_ongoing_requests: Annotated[float, msgspec.Meta(gt=0)] | None = None
    num_cpus: Annotated[float, msgspec.Meta(ge=0)] | None = None
    num_gpus: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        is_fixed = self.max_replicas is None
        if is_fixed and (self.min_replicas, self.target_ongoing_requests) != (None, None):
            raise ValueError("min_replicas and target_ongoing_requests need max_replicas")
        if not is_fixed and self.replicas is not None:
            raise ValueError("replicas and max_replicas exclude each other: leave one out")


def build(args: dict[str, Any]) -> Any:
    """Ray Serve's application for these arguments. Raises `SettingsError`."""
    values = {name.replace("-", "_"): value for name, value in args.items()}
    scale = _scale({name: values.pop(name) for name in Scale.__struct_fields__ if name in values})
    for name in RAYS_OWN:
        if name in values:
            raise SettingsError(f"'{name}': Ray Serve listens; set it in its http_options")
    flags = parse_values(values, "arguments")
    flags.host = EVERYWHERE  # for all that is known here
    _name_drafter(flags)
    for name in PATHS:
        if (path := getattr(flags, name)) is not None:
            setattr(flags, name, os.path.abspath(path))
    limits = limits_from(flags)
    access_from(flags, Address(EVERYWHERE, 0))
    replica = serve.deployment(name="Replica", **_replica_options(scale, flags, limits))(Replica)
    front = serve.deployment(name="Front", **_front_options(limits))(serve.ingress()(FrontDoor))
    return front.bind(replica.bind(vars(flags)), vars(flags))


def _name_drafter(flags: argparse.Namespace) -> None:
    """Say `drafter` for one that `speculative_config` names, whose path is then made absolute."""
    if flags.drafter is not None or flags.speculative_config is None:
        return
    try:
        named = drafting_of(flags.speculative_config)
    except BadConfig as error:
        raise SettingsError(f"speculative-config {error}") from None
    if isinstance(named, str):
        flags.drafter, flags.speculative_config = named, None


def _scale(given: Mapping[str, object]) -> Scale:
    try:
        return msgspec.convert(given, Scale, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"arguments: {error}") from None


def _replica_options(scale: Scale, flags: argparse.Namespace, limits: Limits) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_ongoing_requests": flags.max_num_seqs + limits.max_num_queued_reqs + SPARE_REQUESTS,
        "graceful_shutdown_timeout_s": limits.shutdown_timeout,
        "health_check_period_s": HEALTH_SECONDS,
        "ray_actor_options": _resources(scale, flags),
        "request_router_config": RequestRouterConfig(
            request_router_class="server.replica_router.AffinityRouter",
            request_router_kwargs={"slots": flags.max_num_seqs},
        ),
    }
    if scale.max_replicas is None:
        return options | {"num_replicas": scale.replicas or 1}
    return options | {
        "autoscaling_config": {
            "min_replicas": 1 if scale.min_replicas is None else scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_ongoing_requests or flags.max_num_seqs,
        }
    }


def _resources(scale: Scale, flags: argparse.Namespace) -> dict[str, float]:
    """Of one replica, which is on one node; a process of its engine needs threads or a GPU."""
    processes = flags.tensor_parallel_size
    num_cpus, num_gpus = processes * (flags.threads or 1), processes * (flags.device == "cuda")
    return {
        "num_cpus": num_cpus if scale.num_cpus is None else scale.num_cpus,
        "num_gpus": num_gpus if scale.num_gpus is None else scale.num_gpus,
    }


def _front_options(limits: Limits) -> dict[str, Any]:
    """It outlives its replicas, so that it can say that they are gone."""
    return {
        "max_ongoing_requests": MAX_CONNECTIONS,
        "max_queued_requests": MAX_CONNECTIONS,
        "graceful_shutdown_timeout_s": limits.shutdown_timeout + LAST_WORDS_SECONDS,
        "ray_actor_options": {"num_cpus": 0},
    }


class FrontDoor:
    """The front, as Ray makes it."""

    def __init__(self, handle: DeploymentHandle, flags: Mapping[str, Any]) -> None:
        args = argparse.Namespace(**flags)
        configure(args.log_format, args.log_level)
        self._replicas = HandledReplicas(handle)
        self._access = access_from(args, Address(EVERYWHERE, 0))
        self._limits = limits_from(args)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_front(self._replicas, self._access, self._limits)


class HandledReplicas:
    """The replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def ask(self, exchange: Exchange) -> AsyncGenerator[Item, None]:
        items = self._streaming.answer.remote(exchange)
        is_over = False
        try:
            async for item in items:
                yield item
            is_over = True
        except BackPressureError:
            raise queue_full() from None
        except RayTaskError:  # the replica is there: it failed
            raise
        except (RayError, DeploymentUnavailableError) as error:
            raise ReplicaLost from error
        finally:
            if not is_over:
                items.cancel()

    async def expositions(self) -> Mapping[str, bytes]:
        """Those who do not answer are left out."""
        try:
            asked = self._handle.broadcast("exposition")
            found = await asked.results_async(timeout_s=METRICS_SECONDS, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError):
            raise no_replica() from None
        return dict(each for each in found if not isinstance(each, BaseException))
