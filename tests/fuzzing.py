"""Random requests, valid and broken, against a running server that must survive them all.

    python -m tests.fuzzing --requests 20000        with a server of its own, over the demo pair
    python -m tests.fuzzing --url http://127.0.0.1:8000 --pid PID

Good bodies are changed at random: values, keys, bytes, headers, paths. Whatever is sent, the answer
is whole, comes in time, is no 5xx, does not repeat what was sent in an error, and no engine dies.
Memory may grow by MAX_GROWTH_MB after the first quarter. A server should have a short
--max-model-len: some requests ask for as many tokens as fit.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.machine import resident_mb
from benchmarks.own_server import own_server

CANARY = "zebra-quartz"
MAX_GROWTH_MB = 10.0
SECONDS = 60.0  # for one answer
CLIENTS = 8
JSON_ERRORS = {400, 401, 404, 405, 408, 413, 429, 431}

MESSAGE = {"role": "user", "content": "The falcon"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Finds a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"word": "falcon"}'},
}
SAMPLING: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "seed": 7,
    "stop": ["\n\n"],
    "stop_token_ids": [3],
    "ignore_eos": False,
    "min_tokens": 1,
    "n": 2,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": -10},
    "stream_options": {"include_usage": True},
    "stream_interval": 2,
    "speculative": {"enabled": True, "stats": True, "trace": True},
    "timings_per_token": True,
    "user": "someone",
    "structured_outputs": {"json": {"type": "object", "properties": {"a": {"enum": [1, "b"]}}}},
    "guided_regex": "[a-c]{1,3}(x|y)*",
}
CHAT: dict[str, Any] = SAMPLING | {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "Hi.", "reasoning": "A greeting."},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "A bird."},
        MESSAGE,
    ],
    "logprobs": True,
    "top_logprobs": 2,
    "max_tokens": 4,
    "max_completion_tokens": 3,
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "json_object"},
    "prediction": {"type": "content", "content": "The falcon flies"},
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_effort": "none",
    "include_reasoning": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "metadata": {"a": "b"},
}
COMPLETION: dict[str, Any] = SAMPLING | {
    "prompt": "The falcon",
    "max_tokens": 4,
    "echo": True,
    "logprobs": 2,
    "best_of": 2,
}
RESPONSE: dict[str, Any] = {
    "input": [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "c", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "a bird"},
    ],
    "instructions": "Be brief.",
    "reasoning": {"effort": "none", "summary": "auto"},
    "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    "top_logprobs": 2,
    "parallel_tool_calls": True,
    "truncation": "disabled",
    "prompt_cache_key": "k",
    "max_output_tokens": 16,
    "temperature": 0.5,
    "top_p": 0.9,
    "store": False,
    "text": {"format": {"type": "text"}},
    "tools": [TOOL["function"] | {"type": "function"}],
    "tool_choice": "auto",
    "metadata": {"a": "b"},
}
TOKENIZE: dict[str, Any] = {"prompt": "The falcon", "add_special_tokens": True}
DETOKENIZE: dict[str, Any] = {"tokens": [5, 6, 7]}
# What each route cannot do without; the rest of its body is optional.
ROUTES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "/v1/chat/completions": (CHAT, {"messages", "max_tokens"}),
    "/v1/completions": (COMPLETION, {"prompt", "max_tokens"}),
    "/v1/responses": (RESPONSE, {"input", "max_output_tokens"}),
    "/tokenize": (TOKENIZE, {"prompt"}),
    "/detokenize": (DETOKENIZE, {"tokens"}),
}
ODD_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -0.0,
        1e-300,
        1e300,
        2**31,
        2**63,
        -(2**63),
        2**64,
        10**30,
    ),
    *("", " ", "0", CANARY, "\x00", "\u2028", "é" * 50, "\U0001f600", "<|end|>", "<|im_start|>"),
    *([], {}, [None], [[]], [{}], {"": ""}, {"odd": CANARY}, ["a", 1], [[1, 2], "b"]),
    *({"type": CANARY}, {"type": "text", "text": CANARY}, [1] * 300, ["x"] * 300),
    *("a" * 5000, {str(number): number for number in range(200)}),
]
ODD_NAMES = ["", "odd", "n", "stop", "model", "__proto__", "messages", "\x7f", "tools", "é"]
ODD_TEXTS = [
    b"NaN",
    b"Infinity",
    b"-1e999",
    b"\xff",
    b"\x00",
    b'"\\ud800"',
    b"[" * 50,
    b"1e5",
    b"//",
]
ODD_HEADERS = [
    {"content-type": "text/plain"},
    {"content-type": "application/x-www-form-urlencoded"},
    {"x-request-timeout": CANARY},
    {"x-request-timeout": "0.001"},
    {"x-request-id": CANARY * 20},
    {"authorization": f"Bearer {CANARY}"},
    {"authorization": CANARY},
    {"accept": "nothing/else"},
    {"content-encoding": "gzip"},
]
ODD_PATHS = ["/", "/v1", "/v1/models/" + CANARY, "/v1/models/%2e%2e", "/" + CANARY, "/v1/chat"]
METHODS = ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]


@dataclass(slots=True)
class Attempt:
    path: str
    body: bytes
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)


def attempts(seed: int, model: str) -> Iterator[Attempt]:
    """Without end. One in four is valid but for what the served model cannot do."""
    dice = random.Random(seed)
    while True:
        path = dice.choice(list(ROUTES))
        whole, needed = ROUTES[path]
        kept = {name for name in whole if name in needed or dice.random() < 0.15}
        body = {"model": model} | copy.deepcopy({name: whole[name] for name in kept})
        if path.startswith("/v1") and dice.random() < 0.3:
            body["stream"] = True
        if "stream" not in body:
            body.pop("stream_options", None)
        attempt = Attempt(path, b"")
        is_broken = dice.random() < 0.75
        for _ in range(dice.randint(1, 4) if is_broken else 0):
            mutate(body, dice)
        attempt.body = json.dumps(body).encode("utf-8", "surrogatepass")
        if is_broken and dice.random() < 0.15:
            break_bytes(attempt, dice)
        if dice.random() < 0.05:
            attempt.headers = dice.choice(ODD_HEADERS)
        if dice.random() < 0.02:
            attempt.path = dice.choice(ODD_PATHS)
        if dice.random() < 0.02:
            attempt.method = dice.choice(METHODS)
        yield attempt


def mutate(root: dict[str, Any], dice: random.Random) -> None:
    """Change one value, key or item somewhere in the body."""
    places = [*containers(root)]
    place = dice.choice(places[:1] * 3 + places)
    keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
    if not keys or dice.random() < 0.2:
        if isinstance(place, dict):
            place[dice.choice(ODD_NAMES)] = odd(dice)
        else:
            place.insert(dice.randint(0, len(place)), odd(dice))
        return
    key = dice.choice(keys)
    match dice.randint(0, 4):
        case 0:
            del place[key]
        case 1:
            place[key] = [place[key]]
        case 2 if isinstance(place, list):
            place += copy.deepcopy(place)
        case _:
            place[key] = odd(dice)


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value is not None:
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from containers(child)


def odd(dice: random.Random) -> Any:
    if dice.random() < 0.1:
        return nested(dice.choice([5, 31, 40]))
    return copy.deepcopy(dice.choice(ODD_VALUES))


def nested(depth: int) -> Any:
    value: Any = CANARY
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def break_bytes(attempt: Attempt, dice: random.Random) -> None:
    at = dice.randint(0, len(attempt.body))
    match dice.randint(0, 2):
        case 0:
            attempt.body = attempt.body[:at]
        case 1:
            attempt.body = attempt.body[:at] + dice.choice(ODD_TEXTS) + attempt.body[at:]
        case _:
            attempt.body = attempt.body.replace(b'"', b"'", 1)


class Fuzzer:
    """Sends attempts and keeps what is wrong with their answers."""

    def __init__(self, http: httpx.AsyncClient, model: str, seed: int) -> None:
        self.http = http
        self.attempts = attempts(seed, model)
        self.statuses: Counter[int] = Counter()
        self.complaints: list[str] = []

    async def run(self, count: int, clients: int = CLIENTS) -> None:
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                attempt = next(self.attempts)
                if (complaint := await self.complaint(attempt)) is not None:
                    self.complaints.append(f"{complaint}: {attempt}")

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())

    async def complaint(self, attempt: Attempt) -> str | None:
        """What is wrong with the answer, if anything."""
        start = time.monotonic()
        try:
            answer = await self.http.request(
                attempt.method, attempt.path, content=attempt.body, headers=attempt.headers
            )
        except httpx.HTTPError as error:
            return f"no answer after {time.monotonic() - start:.1f} s, {error!r}"
        self.statuses[answer.status_code] += 1
        if attempt.headers.get("x-request-timeout") == "0.001" and answer.status_code == 504:
            return None  # as asked
        if answer.status_code >= 500:
            return f"status {answer.status_code}, {answer.text[:300]}"
        if attempt.method == "HEAD":
            return None
        if answer.status_code >= 400:
            return error_complaint(answer)
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return stream_complaint(answer)
        return None


def error_complaint(answer: httpx.Response) -> str | None:
    if answer.status_code not in JSON_ERRORS:
        return f"status {answer.status_code}"
    if CANARY in answer.text:
        return f"the error repeats what was sent, {answer.text[:300]}"
    try:
        error = answer.json()["error"]
        is_sound = (
            isinstance(error["message"], str)
            and isinstance(error["type"], str)
            and isinstance(error["param"], str | None)
            and isinstance(error["code"], str | None)
        )
    except (ValueError, LookupError, TypeError):
        is_sound = False
    return None if is_sound else f"no error object, {answer.text[:300]}"


def stream_complaint(answer: httpx.Response) -> str | None:
    """Every event is JSON, none an error; chat and completions end with [DONE]."""
    events = [part for part in answer.text.split("\n\n") if part and not part.startswith(":")]
    names_events = events and events[0].startswith("event:")
    if not names_events and events[-1:] != ["data: [DONE]"]:
        return f"the stream has no end, {answer.text[-300:]}"
    for part in events if names_events else events[:-1]:
        data = part.split("data: ", 1)[-1]
        try:
            body = json.loads(data)
        except ValueError:
            return f"an event is not JSON, {data[:300]}"
        if "error" in body and body.get("error") is not None:
            return f"the stream ended with an error, {data[:300]}"
    return None


async def fuzz(args: argparse.Namespace) -> int:
    """Print what was answered, and all complaints; 1 if there are any."""
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=args.url, timeout=SECONDS, limits=limits) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        fuzzer = Fuzzer(http, model, args.seed)
        first = args.requests // 4
        await fuzzer.run(first)
        before = resident_mb(args.pid) if args.pid else 0.0
        await fuzzer.run(args.requests - first)
        grown = resident_mb(args.pid) - before if args.pid else 0.0
        exposition = (await http.get("/metrics")).text
    if grown > MAX_GROWTH_MB:
        fuzzer.complaints.append(f"memory grew by {grown:.1f} MB")
    restarts = [
        line for line in exposition.splitlines() if line.startswith("falcon:engine_restarts")
    ]
    fuzzer.complaints += [line for line in restarts if not line.endswith(" 0.0")]
    print(f"{args.requests} requests, seed {args.seed}: {dict(sorted(fuzzer.statuses.items()))}")
    print(f"memory {grown:+.1f} MB after the first quarter")
    for complaint in fuzzer.complaints:
        print(complaint[:2000], file=sys.stderr)
    return 1 if fuzzer.complaints else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing")
    parser.add_argument("--url", help="of a running server (default: start one)")
    parser.add_argument("--requests", type=int, default=20000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--pid", type=int, help="server's process: watch its memory (Linux)")
    args = parser.parse_args()
    if args.url is not None:
        return asyncio.run(fuzz(args))
    with own_server("--threads", "1", "--max-model-len", "256") as (address, args.pid):
        args.url = address.removesuffix("/v1")
        return asyncio.run(fuzz(args))


if __name__ == "__main__":
    sys.exit(main())
