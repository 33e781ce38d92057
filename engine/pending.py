"""Every unfinished request: who goes to the engine now, and who is to blame when it dies.

    waiting ── next ──> inside ── finish reason ──> forgotten
       ^                  │
       └── engine died, or made way ──┘

What a request was given is kept, so another engine process can go on behind it: output is a pure
function of the request. The engine holds few more requests than it has slots, so few are suspects:

- When the engine dies, every request inside becomes a *suspect*.
- Suspects go before all others, one at a time and alone. The first token, or score of a token of
  its prompt, clears a suspect: it has outlived the step that was its last. It then makes way for
  the next suspect.
- A suspect that is alone inside when the engine dies again is the *culprit*. Nobody else can be:
  a request counts as inside until the engine has said that it forgot it.

So one poisonous request costs two deaths, and no neighbour of it is ever taken for the culprit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from .messages import RequestOutput, Submit


@dataclass(eq=False, slots=True)
class Request:
    """A request, the tokens it was given so far, and the way to whoever waits for them."""

    submit: Submit
    outputs: asyncio.Queue[RequestOutput | Exception] = field(default_factory=asyncio.Queue)
    given: list[int] = field(default_factory=list)
    scores_given: int = 0
    cached_tokens: int | None = None
    is_suspect: bool = False

    @property
    def id(self) -> str:
        return self.submit.request_id

    @property
    def remainder(self) -> Submit:
        """What the engine is to run: the request, behind what it was already given."""
        return msgspec.structs.replace(
            self.submit, output_ids=[*self.given], scores_given=self.scores_given
        )

    def give(self, output: RequestOutput) -> None:
        """Hand out tokens or scores. What was cached is what the first engine process said."""
        if self.cached_tokens is None:
            self.cached_tokens = output.cached_tokens
        self.given += output.token_ids
        self.scores_given += len(output.prompt_logprobs)
        self.outputs.put_nowait(msgspec.structs.replace(output, cached_tokens=self.cached_tokens))


class Pending:
    """Oldest first, but a key with fewer requests inside goes before one with more.

    `room` requests may be inside at once, and one of every key.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.requests: dict[str, Request] = {}  # unfinished, oldest first
        self.inside: dict[str, Request] = {}  # what the engine process may be computing

    def add(self, submit: Submit) -> Request:
        """Queue a request. Its id must not be in use."""
        assert submit.request_id not in self.requests
        request = self.requests[submit.request_id] = Request(submit, given=[*submit.output_ids])
        return request

    def next(self) -> Request | None:
        """The request that goes inside now, if any may."""
        waiting = [r for r in self.requests.values() if r.id not in self.inside]
        suspects = [r for r in waiting if r.is_suspect]
        if suspects or any(r.is_suspect for r in self.inside.values()):
            request = suspects[0] if suspects and not self.inside else None
        else:
            request = self._next_innocent(waiting)
        if request is not None:
            self.inside[request.id] = request
        return request

    def _next_innocent(self, waiting: list[Request]) -> Request | None:
        held = Counter(r.submit.key for r in self.inside.values())
        request = min(waiting, key=lambda r: held[r.submit.key], default=None)
        if request is not None and (len(self.inside) < self.room or not held[request.submit.key]):
            return request
        return None

    def take(self, output: RequestOutput) -> bool:
        """Hand out what the engine made; True when the request is to make way for a suspect."""
        request = self.inside.get(output.request_id)
        if request is None or request.id not in self.requests:
            return False  # whoever waited for it has left
        request.give(output)
        if output.finish_reason is not None:
            del self.requests[request.id]
            del self.inside[request.id]
            return False
        is_cleared = request.is_suspect and bool(output.token_ids or output.prompt_logprobs)
        request.is_suspect = request.is_suspect and not is_cleared
        return is_cleared and any(r.is_suspect for r in self.requests.values())

    def leave(self, request: Request) -> bool:
        """Nobody waits for it any more; True when the engine is to be told."""
        is_unfinished = self.requests.pop(request.id, None) is not None
        return is_unfinished and request.id in self.inside

    def forgotten(self, request_id: str) -> None:
        """The engine has forgotten the request: it may be sent again, if it is still wanted."""
        self.inside.pop(request_id, None)

    def engine_died(self) -> Request | None:
        """Everything inside waits again; the culprit, who does not, if there is one."""
        dead, self.inside = [*self.inside.values()], {}
        if len(dead) == 1 and dead[0].is_suspect and dead[0].id in self.requests:
            return self.requests.pop(dead[0].id)
        for request in dead:
            request.is_suspect = True
        return None
