"""schemathesis against a running server: data that `/openapi.json` allows, and data it does not.

    python -m tests.schema_fuzzing --examples 300      with a server of its own, over the demo pair
    python -m tests.schema_fuzzing --url http://127.0.0.1:8000

Every answer has the status, media type, headers and schema that the description gives it, none is a
5xx or late. What breaks the description is refused; so is who shows no key where one is needed.
Beside random data (`--examples` for each route) the bounds of every field are tried.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import schemathesis

from benchmarks.own_server import own_server
from tests.fuzzing import MESSAGE, ROUTES

ROOT = Path(__file__).parent.parent
SECONDS = 60  # for one answer
KEPT = 3  # optional fields of a valid body: of sixty at once some exclude each other
NOT_ASKED = "positive_data_acceptance"  # valid fields may still contradict each other


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
    """Make it likely that a valid random body is accepted."""
    meta = case.meta
    assert meta is not None
    is_random = meta.phase.name.value == "fuzzing"
    if is_random and meta.generation.mode.is_positive and isinstance(case.body, dict):
        case.body = _lightened(case.body, *ROUTES[case.path])
    return case


def _lightened(body: dict[str, Any], known: dict[str, Any], needed: set[str]) -> dict[str, Any]:
    """What it needs and a few known fields more, without answers of tools that nobody called."""
    dice = random.Random(json.dumps(body, sort_keys=True))
    others = sorted(body.keys() & known.keys() - needed)
    kept = {"model", *needed, *dice.sample(others, min(KEPT, len(others)))}
    found = {name: value for name, value in body.items() if name in kept}
    if isinstance(found.get("messages"), list):
        spoken = [message for message in found["messages"] if message["role"] != "tool"]
        found["messages"] = spoken or [MESSAGE]
    plain: dict[str, Any] = json.loads(json.dumps(found), parse_float=_number)
    return plain


def _number(text: str) -> float:
    """To JSON Schema 5.0 is an integer; to this server it is not."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def run(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """schemathesis' findings, always with the same data; status 0 where there are none."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"]
    command += ["--checks", "all", "--exclude-checks", NOT_ASKED, "--warnings", "off"]
    command += ["--generation-deterministic", "--request-timeout", str(SECONDS), "--no-color"]
    command += options
    own = {"SCHEMATHESIS_HOOKS": "tests.schema_fuzzing", "PYTHONPATH": str(ROOT)}
    environment = os.environ | own
    with TemporaryDirectory() as folder:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )


def restarts(url: str) -> list[str]:
    """Lines of the metrics that tell of engines that were replaced."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("falcon:engine_restarts")]
    return [line for line in found if not line.endswith(" 0.0")]


def fuzz(url: str, examples: int) -> int:
    """Print what schemathesis says; 1 if it found anything, or an engine died."""
    done = run(url, "--phases", "coverage,fuzzing", "--max-examples", str(examples))
    died = restarts(url)
    print(done.stdout, done.stderr, *died, sep="\n")
    return 1 if done.returncode or died else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.schema_fuzzing")
    parser.add_argument("--url", help="of a running server without keys (default: start one)")
    parser.add_argument("--examples", type=int, default=300, metavar="N", help="for each route")
    args = parser.parse_args()
    if args.url is not None:
        return fuzz(args.url, args.examples)
    with own_server("--threads", "1", "--max-model-len", "256") as (address, _):
        return fuzz(address.removesuffix("/v1"), args.examples)


if __name__ == "__main__":
    sys.exit(main())
