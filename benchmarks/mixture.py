"""Requests of many kinds, drawn with a seed: as a server gets them that many programs use.

Whole ones get a 200, broken ones a 400, and some clients leave at a random moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any

import httpx

from .chat_client import REFUSALS, refusal_of
from .settings import BenchmarkError

Body = dict[str, Any]
LEAVERS = 0.1  # of all clients
LEAVE_SECONDS = 1.5  # within these
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
}
TOOL = {"type": "function", "function": {"name": "remember", "parameters": PERSON}}


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, the status that it must get, and when its client leaves."""

    kind: str
    path: str
    body: Body
    status: int = 200
    patience: float | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """What requests are made of: the model, its context's length, texts, and token ids of them."""

    model: str
    context_length: int
    texts: Sequence[str]
    ids: Sequence[int]
    max_tokens: int


async def material(http: httpx.AsyncClient, texts: Sequence[str], max_tokens: int) -> Material:
    """Asks the server what it serves. Raises `BenchmarkError`."""
    try:
        card = (await http.get("/v1/models")).raise_for_status().json()["data"][0]
        body = {"model": card["id"], "prompt": "\n".join(texts)}
        ids = (await http.post("/tokenize", json=body)).raise_for_status().json()["tokens"]
        return Material(card["id"], card["max_model_len"], texts, ids, max_tokens)
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise BenchmarkError(f"{http.base_url} is no server to talk to: {error!r}") from error


def requests(of: Material, seed: int) -> Iterator[Request]:
    """Without end, and the same again with the same seed."""
    dice = random.Random(seed)
    kinds = list(_KINDS)
    weights = [weight for weight, _, _ in _KINDS.values()]
    while True:
        (kind,) = dice.choices(kinds, weights)
        _, path, make = _KINDS[kind]
        status = 400 if kind == "broken" else 200
        patience = dice.uniform(0, LEAVE_SECONDS) if dice.random() < LEAVERS else None
        yield Request(kind, path, {"model": of.model} | make(of, dice), status, patience)


def _chat(of: Material, dice: random.Random, **more: Any) -> Body:
    messages = [{"role": "user", "content": dice.choice(of.texts)}]
    return {"messages": messages, "seed": dice.randrange(99)} | _sampling(of, dice) | more


def _sampling(of: Material, dice: random.Random) -> Body:
    return {"temperature": dice.choice([0, 0.8]), "max_tokens": dice.randint(1, of.max_tokens)}


def _stream(of: Material, dice: random.Random) -> Body:
    return _chat(of, dice, stream=True, stream_options={"include_usage": True})


def _tools(of: Material, dice: random.Random) -> Body:
    choice = dice.choice(["auto", "required"])
    return _chat(of, dice, tools=[TOOL], tool_choice=choice, stream=dice.random() < 0.5)


def _schema(of: Material, dice: random.Random) -> Body:
    """One in four is a schema that was never seen before."""
    name = dice.choice(["name", "name", "name", f"name{dice.getrandbits(64)}"])
    words = {"enum": ["falcon", "raven", "owl"]}
    schema = {"type": "object", "properties": {name: words}, "required": [name]}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    return _chat(of, dice, response_format=form)


def _choices(of: Material, dice: random.Random) -> Body:
    return _chat(of, dice, n=dice.randint(2, 4), stream=dice.random() < 0.5)


def _logprobs(of: Material, dice: random.Random) -> Body:
    return _chat(of, dice, logprobs=True, top_logprobs=dice.randint(0, 5))


def _predicted(of: Material, dice: random.Random) -> Body:
    guess = {"type": "content", "content": dice.choice(of.texts)}
    return _chat(of, dice, prediction=guess, stream=True)


def _completion(of: Material, dice: random.Random) -> Body:
    prompts = [dice.choice(of.texts) for _ in range(dice.randint(1, 3))]
    echo = {"echo": True, "logprobs": 1} if dice.random() < 0.3 else {}
    return {"prompt": prompts} | _sampling(of, dice) | echo


def _long(of: Material, dice: random.Random) -> Body:
    """A prompt that fills most of the context, from a random place of the ids on."""
    length = dice.randint(of.context_length // 2, of.context_length - of.max_tokens)
    start = dice.randrange(len(of.ids))
    ids = list(islice(cycle(chain(of.ids[start:], of.ids[:start])), length))
    return {"prompt": ids, "stream": True} | _sampling(of, dice)


def _response(of: Material, dice: random.Random) -> Body:
    limit = dice.randint(16, max(16, of.max_tokens))  # OpenAI's least
    return {
        "input": dice.choice(of.texts),
        "max_output_tokens": limit,
        "stream": dice.random() < 0.5,
    }


def _tokenize(of: Material, dice: random.Random) -> Body:
    return {"prompt": dice.choice(of.texts)}


def _broken(of: Material, dice: random.Random) -> Body:
    wrong: Body = dice.choice(
        [
            {"messages": []},
            {"max_tokens": "many"},
            {"temperature": 9},
            {"max_tokens": of.context_length + 1},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            {"messages": [{"role": "nobody", "content": "x" * dice.randint(1, 5000)}]},
        ]
    )
    return _chat(of, dice) | wrong


_KINDS: dict[str, tuple[int, str, Callable[[Material, random.Random], Body]]] = {
    "chat": (4, CHAT, _chat),
    "stream": (8, CHAT, _stream),
    "tools": (2, CHAT, _tools),
    "schema": (2, CHAT, _schema),
    "choices": (2, CHAT, _choices),
    "logprobs": (2, CHAT, _logprobs),
    "predicted": (2, CHAT, _predicted),
    "completion": (3, COMPLETIONS, _completion),
    "long": (1, COMPLETIONS, _long),
    "response": (3, RESPONSES, _response),
    "tokenize": (1, "/tokenize", _tokenize),
    "broken": (3, CHAT, _broken),
}


def verdict(request: Request, answer: httpx.Response) -> str:
    """ "completed", "refused", or what is wrong with the answer."""
    if answer.status_code in REFUSALS:
        return "refused"
    if answer.status_code != request.status:
        return f"{request.kind}: {refusal_of(answer.status_code, answer.content)}"
    return "completed" if _is_whole(answer.text) else f"{request.kind}: {answer.text[-200:]}"


def _is_whole(text: str) -> bool:
    """An object, or a stream that ended without an error; comments may stand in front of it."""
    while text.startswith(":"):
        text = text.partition("\n\n")[2]
    if text.startswith("event: "):
        last = text.rpartition("event: ")[2].partition("\n")[0]
        return last in ("response.completed", "response.incomplete")
    if text.startswith("data: "):
        return text.endswith("data: [DONE]\n\n") and '\ndata: {"error":' not in text
    return text.startswith("{") and text.endswith("}")
