"""The one stream that both kinds of reply are made of: text, as soon as tokens make it certain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.messages import Submit

from .detokenizer import Detokenizer
from .errors import generation_failed
from .logprobs import LogprobsQueue
from .merging import merged
from .served import ServedModel


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that one step added to a choice; its last one has a finish reason and may have no text.

    `logprobs` has the entries of all tokens whose text this delta completes, of those without text
    too, or is None for a request that did not ask. `usage` is the whole request's so far.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: list[dict[str, Any]] | None
    usage: Usage


async def deltas(
    submits: Sequence[Submit], stops: list[str], served: ServedModel
) -> AsyncGenerator[Delta, None]:
    """Run the request; yield a delta for each step that made text certain, and each choice's last.

    Ends when every choice has had its delta with a finish reason. Closing it early aborts them all
    in the engine. Raises `EngineDied`, or `ApiError` when the engine failed on one of them.
    """
    choices = [_choice_deltas(index, s, stops, served) for index, s in enumerate(submits)]
    usages: dict[int, Usage] = {}
    async with aclosing(merged(choices)) as stream:
        async for delta in stream:
            usages[delta.index] = delta.usage
            yield replace(delta, usage=_total(usages))


async def _choice_deltas(
    index: int, submit: Submit, stops: list[str], served: ServedModel
) -> AsyncGenerator[Delta, None]:
    """The deltas of one choice; its usage is its own. The first choice pays for the prompt."""
    text = Detokenizer(served.tokenizer, stops, submit.stop_token_ids, submit.sampling.min_tokens)
    logprobs = LogprobsQueue(submit, served.tokenizer)
    prompt_tokens = 0 if index else len(submit.prompt_ids)
    with served.metrics.request_started() as clock:
        async with aclosing(served.engine.generate(submit)) as outputs:
            async for output in outputs:
                consumed = text.consumed
                piece = text.push(output.token_ids)
                clock.tokens_arrived(text.consumed - consumed, prompt_tokens)
                if output.finish_reason == "error":
                    raise generation_failed()
                if output.finish_reason is not None:
                    piece += text.finish()
                logprobs.add(output)
                end = clock.finish_reason = "stop" if text.is_stopped else output.finish_reason
                if piece or end:
                    usage = Usage(len(submit.prompt_ids), text.consumed, output.cached_tokens)
                    yield Delta(index, piece, end, logprobs.take(text.released), usage)
                if end:
                    return


def _total(usages: dict[int, Usage]) -> Usage:
    """All choices' completion tokens, and the prompt once."""
    first = usages[min(usages)]
    return replace(first, completion_tokens=sum(u.completion_tokens for u in usages.values()))
