"""Canaries: what clients send, what they are answered and their keys are in no log or metric.

Nor are they in an error, whatever goes wrong; the log is written at debug level.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.logs import FORMATS
from server.api_keys import key_digest
from tests.server_harness import build_model_folder
from tests.server_process import CHAT, Served, chat, serving

CANARY = "canary7f3a"
KEY, WRONG_KEY = f"sk-{CANARY}-right", f"sk-{CANARY}-wrong"
BUG = """
from server import submits
real = submits._token_budget
def fail(request, *rest):
    if request.max_tokens == 77:
        raise RuntimeError(f"no room for {request}")
    return real(request, *rest)
submits._token_budget = fail
from engine.client import EngineClient
real_take = EngineClient._hand_out
def fail_once(self, output):
    if output.finish_reason:
        EngineClient._hand_out = real_take
        self.observers.append(lambda report: 1 / 0)
    real_take(self, output)
EngineClient._hand_out = fail_once
"""


def orders(**fields: Any) -> str:
    return json.dumps({"say": CANARY, **fields})


def said_to(served: Served) -> list[httpx.Response]:
    """Answers other than success, to all that can go wrong with a canary inside."""
    bodies: list[dict[str, Any]] = [
        chat(CANARY) | {"max_tokens": 77},
        chat(CANARY) | {"temperature": CANARY},
        chat(CANARY) | {"model": CANARY},
        chat(CANARY) | {"messages": [{"role": CANARY, "content": CANARY}]},
        chat(CANARY) | {"tools": [{"type": CANARY}]},
        chat(CANARY) | {"stop": ["x" * 300 + CANARY]},
        chat(CANARY * 1000),
        chat(CANARY + "漢" * 300),
        chat("refuse me") | {"user": CANARY},
        chat(orders(error_after=1)),
        chat(orders(die_at=0)),
    ]
    answers = [served.client.post(CHAT, json=body) for body in bodies]
    answers += [served.client.post(CHAT, json=body | {"stream": True}) for body in bodies[-2:]]
    answers += [
        served.client.post(CHAT, content=f'{{"{CANARY}": "{CANARY}'.encode()),
        served.client.post(CHAT, content=f'{{"x": NaN, "y": "{CANARY}"}}'.encode()),
        served.client.post(CHAT, content=CANARY.encode() * 200_000),
        served.get(f"/{CANARY}?{CANARY}={CANARY}", headers={"x-y": CANARY, "cookie": CANARY}),
        served.get(f"/v1/models/{CANARY}"),
        served.get("/v1/models", headers={"authorization": f"Bearer {WRONG_KEY}"}),
        served.get("/v1/models", headers={"authorization": f"Basic {CANARY}"}),
        served.get("/v1/models", headers={"origin": f"http://{CANARY}.example.com"}),
        served.get(f"/{CANARY}" * 2000),
        served.get("/nothing", headers={"x-request-id": f"{CANARY} {CANARY}"}),
        served.client.request(CANARY, "/v1/models"),
        served.post(CANARY, headers={"x-request-timeout": CANARY}),
    ]
    return answers


def say_what_is_no_http(served: Served) -> bytes:
    with socket.create_connection(("127.0.0.1", served.client.base_url.port or 0), 10) as sock:
        sock.sendall(f"{CANARY} {CANARY}\r\n{CANARY}\r\n\r\n".encode())
        return sock.recv(65536)


@pytest.mark.parametrize("form", FORMATS)
def test_nobody_but_the_client_sees_its_text(
    form: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = build_model_folder(tmp_path_factory.mktemp("model"))
    (tmp_path / "keys").write_text(KEY)
    words = ["--log-format", form, "--log-level", "debug", "--api-key", f"sk-{CANARY}-third"]
    words += ["--api-key-file", str(tmp_path / "keys")]
    with serving(folder, *words, plant=BUG) as served:
        served.client.headers["authorization"] = f"Bearer {KEY}"
        assert CANARY in served.post(CANARY, headers={"x-request-id": "mine"}).text
        with served.stream(orders(step=1)) as answer:
            assert answer.read().endswith(b"data: [DONE]\n\n")
        refused = said_to(served)
        raw = say_what_is_no_http(served)
        metrics = served.get("/metrics").text
        title = Path(f"/proc/{served.process.pid}/cmdline").read_text()
        served.send_signal()
        status, out, err = served.ended()
    assert status == 0
    assert [a.status_code for a in refused if a.status_code < 400] == []
    for told in (*(f"{a.headers} {a.text}" for a in refused), raw.decode(), metrics, title):
        assert CANARY not in told
    assert CANARY not in out + err
    for expected in ("RuntimeError", "ZeroDivisionError", key_digest(KEY)[:8], "mine", "killed"):
        assert expected in err, expected
    if form == "json":
        assert all(json.loads(line)["message"] for line in err.splitlines())
