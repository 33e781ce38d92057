"""What is shipped to run the server with: the image's stages, compose, the manifests, the unit."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from server.arguments import add_arguments
from server.probes import router as probes
from server.routes import router

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
Json = dict[str, Any]


def script(name: str) -> Any:
    """A module of docker/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dockerfile = script("dockerfile")
IMAGE = dockerfile.read(ROOT / "Dockerfile").stages[-1]
ENTRYPOINT: list[str] = json.loads(IMAGE.all("ENTRYPOINT")[0])
COMPOSE: Json = yaml.safe_load((DOCKER / "compose.yaml").read_text())
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))
UNIT = DOCKER / "systemd" / "falcon.service"


def manifest(name: str) -> Json:
    loaded: Json = yaml.safe_load((DOCKER / "kubernetes" / f"{name}.yaml").read_text())
    return loaded


def parsed(words: list[str]) -> argparse.Namespace:
    """What `falcon serve` makes of its flags; it ends the test where it does not know one."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def routes() -> set[str]:
    return {getattr(route, "path", "") for route in (*router.routes, *probes.routes)}
