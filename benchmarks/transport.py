"""What HTTP costs: a streamed chat completion against the same engine in this process.

    python -m benchmarks.transport --threads 1 --limit 8 --repeats 3

A server of its own is started with the same models and options. The two answer each prompt by
turns, one request at a time, both from a cold cache and with the drafter's whole plan; the one that
does not answer is idle. A table goes to stdout, and as its last line one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import httpx
import msgspec
from transformers import AutoTokenizer

from .chat_client import ask
from .command import add_model_arguments, add_protocol_arguments, refuse
from .loading import engine_config, load_checked, prepare
from .machine import Machine, describe_machine
from .methods import EngineMethod
from .output import json_line, new_table, show_table
from .own_server import own_server
from .prompts import Messages, encode, read_rows
from .protocol import garbage_collection_off, rotated
from .settings import BenchmarkError, Settings, settings_from

WAYS = ("in process", "over HTTP")


class Way(msgspec.Struct, kw_only=True):
    """Tokens and seconds, end to end, of each answer in order."""

    name: str
    tokens: list[int] = []
    seconds: list[float] = []

    @property
    def speed(self) -> float:
        return sum(self.tokens) / sum(self.seconds)


def conversations(settings: Settings) -> list[tuple[Messages, list[int]]]:
    """The prompts that leave room for the answer, in messages and in ids. Raises `BenchmarkError`.

    More than one: the only slot then holds another prompt whenever one comes again.
    """
    fitting = {tuple(prompt.ids) for prompt in prepare(settings)[0].prompts}
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.model, local_files_only=True)
    rows = [row for file in settings.prompts for row in read_rows(file, settings.limit)]
    found = [(messages, encode(tokenizer, messages, where)) for where, messages in rows]
    kept = [(messages, ids) for messages, ids in found if tuple(ids) in fitting]
    if len(kept) < 2:
        raise BenchmarkError("--prompts: at least two must fit")
    return kept


async def measure(
    address: str, engine: EngineMethod, pairs: Sequence[tuple[Messages, list[int]]], repeats: int
) -> list[Way]:
    """Both ways on every prompt, `repeats` times after one that does not count."""
    ways = [Way(name=name) for name in WAYS]
    async with httpx.AsyncClient(base_url=address.removesuffix("/v1"), trust_env=False) as http:
        for repeat in range(repeats + 1):
            for number, (messages, ids) in enumerate(pairs):
                for way in rotated(ways, number + repeat):
                    if way.name == WAYS[0]:
                        answer = engine.generate(ids)
                        tokens, seconds = len(answer.token_ids), answer.seconds
                    else:
                        tokens, seconds = await over_http(http, messages, engine)
                    if repeat:
                        way.tokens.append(tokens)
                        way.seconds.append(seconds)
    if ways[0].tokens != ways[1].tokens:
        raise BenchmarkError("the two do not give answers of the same lengths")
    return ways


async def over_http(
    http: httpx.AsyncClient, messages: Messages, engine: EngineMethod
) -> tuple[int, float]:
    """Tokens and seconds of one streamed answer, read to its end."""
    sampling = engine.task.sampling
    body = {
        "model": "model",
        "messages": messages,
        "max_tokens": engine.task.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = await ask(http, body)
    if answer.outcome != "completed":
        raise BenchmarkError(f"the server gave no answer: {answer.detail}")
    return answer.tokens, answer.end - answer.start


def server_options(settings: Settings, context_length: int) -> list[str]:
    """Flags that make the server's engine equal to ours."""
    drafter = [] if settings.drafter is None else ["--drafter", str(settings.drafter)]
    return [
        *(str(settings.model), *drafter, "--served-model-name", "model", "--max-num-seqs", "1"),
        *("--max-model-len", str(context_length), "--speculation", "always"),
        *("--dtype", settings.dtype, "--device", settings.device),
        *("--threads", str(settings.threads)),
    ]


def run(settings: Settings) -> tuple[Machine, list[Way]]:
    """Both ways on the same prompts. Raises `BenchmarkError`."""
    load = os.getloadavg()[0]
    prompts, task = prepare(settings)
    pairs = conversations(settings)
    context_length = prompts.longest + settings.max_tokens
    engine = load_checked(engine_config(settings, settings.drafter, context_length))
    machine = describe_machine(engine.target.device, engine.target.dtype, load)
    method = EngineMethod("engine", engine, task)
    options = server_options(settings, context_length)
    with own_server(*options) as (address, _), garbage_collection_off():
        return machine, asyncio.run(measure(address, method, pairs, settings.repeats))


def show(machine: Machine, ways: Sequence[Way]) -> None:
    alone, http = ways
    slower = median(b / a for a, b in zip(alone.seconds, http.seconds, strict=True))
    table = new_table(("engine",), ("answers", "tokens", "tok/s", "share"), "tok/s end to end")
    for way in ways:
        table.add_row(
            way.name,
            str(len(way.tokens)),
            str(sum(way.tokens)),
            f"{way.speed:.1f}",
            f"{way.speed / alone.speed:.1%}",
        )
    show_table(machine.headline, table, [f"median of the answers' own shares: {1 / slower:.1%}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport")
    add_model_arguments(parser)
    add_protocol_arguments(parser)
    parser.set_defaults(methods="ar")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
    try:
        machine, ways = run(settings_from(parser.parse_args(argv)))
    except BenchmarkError as error:
        return refuse("transport", error)
    show(machine, ways)
    print(json_line({"machine": machine, "ways": ways}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
