"""`falcon chat`: talk to a running server. Ctrl-C stops an answer, Ctrl-D leaves."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

Message = dict[str, str]


class ChatFailed(Exception):
    """No answer came; the text says why, for the person at the terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="ask once and leave (default: a conversation)")
    add("--url", default="http://127.0.0.1:8000", help="server (default: %(default)s)")
    add("--api-key", metavar="KEY", help="the server's (default: FALCON_API_KEY)")
    add("--model", help="model name (default: the server's first)")
    add("--temperature", type=float, help="0 is greedy (default: the server's)")
    add("--max-tokens", type=int, metavar="N", help="tokens per answer (default: as many as fit)")
    add("--system", metavar="TEXT", help="system message")


def run(args: argparse.Namespace) -> int:
    """Ask once, or converse until Ctrl-D; 1 when the server cannot be reached or refuses."""
    timeout = httpx.Timeout(10.0, read=None)
    key = args.api_key or os.environ.get("FALCON_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = args.url.rstrip("/")
    with httpx.Client(base_url=url, timeout=timeout, headers=headers) as client:
        try:
            model = args.model or _first_model(client)
            _converse(client, model, args)
        except httpx.RequestError as error:
            print(
                f"falcon chat: no server answers at {args.url} ({type(error).__name__}): start "
                "one with 'falcon serve', or name another with --url",
                file=sys.stderr,
            )
            return 1
        except ChatFailed as error:
            print(f"falcon chat: {error}", file=sys.stderr)
            return 1
    return 0


def _converse(client: httpx.Client, model: str, args: argparse.Namespace) -> None:
    messages: list[Message] = []
    if args.system:
        messages.append({"role": "system", "content": args.system})
    for text in _questions(args.prompt):
        messages.append({"role": "user", "content": text})
        body = {"model": model, "messages": messages, "stream": True}
        body |= {"stream_options": {"include_usage": True}}
        body |= {"temperature": args.temperature, "max_tokens": args.max_tokens}
        answer = _print_answer(client, body)
        messages.append({"role": "assistant", "content": answer})


def _questions(prompt: str | None) -> Iterator[str]:
    """The one prompt, or what is typed until end-of-file."""
    if prompt is not None:
        yield prompt
        return
    print("Ctrl-C stops an answer, Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if text.strip():
            yield text


def _print_answer(client: httpx.Client, body: dict[str, Any]) -> str:
    """Print the answer as it comes, then its speed on stderr; what was said so far on Ctrl-C."""
    said: list[str] = []
    first = last = time.perf_counter()
    tokens = 0
    try:
        for chunk in _chunks(client, body):
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                text = choice["delta"].get("content", "")
                last = time.perf_counter()
                print(_dim(choice["delta"].get("reasoning", "")) + text, end="", flush=True)
                said.append(text)
    except KeyboardInterrupt:
        print(" [stopped]", end="", file=sys.stderr)
    print()
    if tokens and last > first:
        speed = tokens / (last - first)
        print(f"{tokens} tokens, {speed:.1f} tokens/s", file=sys.stderr)
    return "".join(said)


def _dim(thoughts: str) -> str:
    """What the model thinks, for a terminal; nowhere else is it part of the answer."""
    return f"\033[2m{thoughts}\033[0m" if thoughts and sys.stdout.isatty() else ""


def _chunks(client: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            response.read()
            raise ChatFailed(_error_text(response))
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise ChatFailed(chunk["error"]["message"])
                yield chunk


def _first_model(client: httpx.Client) -> str:
    response = client.get("/v1/models")
    if response.is_error:
        raise ChatFailed(_error_text(response))
    name: str = response.json()["data"][0]["id"]
    return name


def _error_text(response: httpx.Response) -> str:
    try:
        text: str = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        text = f"the server answered with status {response.status_code}; is it a Falcon server?"
    return text
