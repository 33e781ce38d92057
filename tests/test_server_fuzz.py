"""The short form of `make fuzz`: random requests to a server over the fake worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from fuzzing import CLIENTS, Fuzzer

from tests.server_harness import PATIENCE, build_model_folder, running_server

REQUESTS = 600


@pytest.mark.parametrize("seed", [1, 2])
def test_no_request_makes_a_5xx_or_hangs(tmp_path: Path, seed: int) -> None:
    with running_server(build_model_folder(tmp_path / "m")) as server:
        fuzzer = asyncio.run(fuzzed(server.url, seed))
        assert not fuzzer.complaints, "\n".join(fuzzer.complaints[:5])
        assert fuzzer.statuses[200] > REQUESTS / 20, "too few requests were valid"
        assert fuzzer.statuses[400] > REQUESTS / 20, "too few requests were broken"
        assert server.received("Start") == 1
        assert server.post(server.chat()).status_code == 200


async def fuzzed(url: str, seed: int) -> Fuzzer:
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as http:
        fuzzer = Fuzzer(http, "tiny", seed)
        await fuzzer.run(REQUESTS)
    return fuzzer
