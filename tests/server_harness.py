"""A model folder with a tiny tokenizer, and a real server on a real socket over a fake engine."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.config import EngineConfig
from server.serve import serve
from server.settings import Access, Address, Limits, Settings

WORKER = Path(__file__).with_name("fake_worker.py")
SPECIALS = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] == 'refuse me' %}{{ raise_exception('Not that.') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 256
PATIENCE = 60.0  # seconds for what takes milliseconds, on a machine that is busy with others


def build_model_folder(
    folder: Path, template: str = TEMPLATE, specials: Sequence[str] = SPECIALS
) -> Path:
    """Byte-level BPE of a few hundred tokens with a chat template; no weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world the falcon flies over the hills"] * 2, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    config = {"bos_token": "<|bos|>", "eos_token": {"content": "<|end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return folder


def worker_command(*options: str) -> list[str]:
    return [sys.executable, str(WORKER), *options]


@dataclass
class Running:
    """A live server; `log` is what its workers have received, by kind of message."""

    port: int
    log: Path
    stop: Callable[[], None]
    loop: asyncio.AbstractEventLoop

    def __post_init__(self) -> None:
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def received(self, kind: str) -> int:
        return self.log.read_text().split().count(kind) if self.log.exists() else 0

    def worker_pid(self) -> int:
        """The worker's that was started last."""
        words = self.log.read_text().split()
        return int([pid for word, pid in pairwise(words) if word == "Start"][-1])

    def chat(self, content: object = "hi", **fields: Any) -> dict[str, Any]:
        """A request body; a dict as content is an order to the fake worker."""
        text = json.dumps(content) if isinstance(content, dict) else content
        return {"model": "tiny", "messages": [{"role": "user", "content": text}]} | fields

    def post(
        self, body: dict[str, Any], path: str = "/v1/chat/completions", **options: Any
    ) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def events(self, body: dict[str, Any], **options: Any) -> list[Any]:
        """Parsed payloads of a stream, with "[DONE]" as it is."""
        answer = self.post(body | {"stream": True}, **options)
        assert answer.status_code == 200, answer.text
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    def leave(
        self, body: dict[str, Any], path: str = "/v1/chat/completions", choices: int = 1
    ) -> None:
        """Send a request, and go without its answer once the engine has all its choices."""
        submits, content = self.received("Submit"), json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.sendall(head.encode() + content)
            eventually(lambda: self.received("Submit") == submits + choices)


@contextmanager
def running_server(
    folder: Path,
    *options: str,
    model_len: int = CONTEXT,
    drafter: str | None = None,
    limits: Limits = Limits(),  # noqa: B008  # it is frozen
    access: Access | None = None,
    names: tuple[str, ...] = ("tiny",),
    waits: bool = True,
    traces: str | None = None,
) -> Iterator[Running]:
    """Serve `folder` in a thread, with the fake worker behind it, once it is loaded."""
    log = folder / f"worker-{time.monotonic_ns()}.log"
    config = EngineConfig(
        model=str(folder), drafter=drafter, max_model_len=model_len, max_num_seqs=4
    )
    settings = Settings(
        config,
        names,
        Address("127.0.0.1", 0),
        limits,
        access or Access(),
        otlp_traces_endpoint=traces,
    )
    command = worker_command("--log", str(log), *options)
    with serving(settings, command, log, waits=waits) as running:
        yield running


@contextmanager
def serving(
    settings: Settings,
    command: Sequence[str],
    log: Path,
    start_seconds: float = PATIENCE,
    waits: bool = True,
) -> Iterator[Running]:
    """The same with any worker, also a real one."""
    started = threading.Event()
    running: list[Running] = []

    def on_start(port: int, stop: Callable[[], None]) -> None:
        running.append(Running(port, log, stop, asyncio.get_running_loop()))
        started.set()

    def work() -> None:
        asyncio.run(serve(settings, command, on_start))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert started.wait(start_seconds), "the server did not start"
        path = "/health" if waits else "/livez"
        eventually(lambda: running[0].get(path).status_code == 200, start_seconds)
        yield running[0]
    finally:
        if running:
            running[0].client.close()
            running[0].stop()
        thread.join(PATIENCE)


def paths_of(routes: Sequence[Any]) -> set[str]:
    """Their paths, those of included routers too."""
    included = [getattr(route, "original_router", None) for route in routes]
    own = {route.path for route, router in zip(routes, included, strict=True) if router is None}
    return own.union(*(paths_of(router.routes) for router in included if router is not None))


def eventually(is_true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until `is_true`; connection errors count as not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if is_true():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError("it did not become true in time")
