"""The one stream that both kinds of reply are made of: text, as soon as tokens make it certain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engine.messages import Submit

from .detokenizer import Detokenizer, context_of
from .errors import generation_failed
from .logprobs import LogprobsQueue, PromptEntries
from .merging import merged
from .parameters import Parameters
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
    too, or is None for a request that did not ask; `offsets` are where these texts start in the
    choice's, in characters. `prompt_logprobs` has the entries of the prompt's next tokens: all come
    before the first text. `usage` is the whole request's so far.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: list[dict[str, Any]] | None
    usage: Usage
    offsets: list[int] = field(default_factory=list)
    prompt_logprobs: list[dict[str, Any]] = field(default_factory=list)


async def deltas(
    submits: Sequence[Submit], request: Parameters, served: ServedModel
) -> AsyncGenerator[Delta, None]:
    """Run the request; yield a delta for each step that made text certain, and each choice's last.

    Ends when every choice has had its delta with a finish reason. Closing it early aborts them all
    in the engine. Raises `EngineDied`, or `ApiError` when the engine failed on one of them.
    """
    choices = [_choice_deltas(index, s, request, served) for index, s in enumerate(submits)]
    usages: dict[int, Usage] = {}
    async with aclosing(merged(choices)) as stream:
        async for delta in stream:
            usages[delta.index] = delta.usage
            yield replace(delta, usage=_total(usages))


async def _choice_deltas(
    index: int, submit: Submit, request: Parameters, served: ServedModel
) -> AsyncGenerator[Delta, None]:
    """The deltas of one choice; its usage is its own. A prompt's first choice pays for it."""
    text = _detokenizer(submit, request, served)
    logprobs = LogprobsQueue(submit, served.tokenizer)
    prompt = PromptEntries(submit, served.tokenizer)
    pays = index % request.num_choices == 0
    prompt_tokens = len(submit.prompt_ids) if pays else 0
    with served.metrics.request_started() as clock:
        async with aclosing(served.engine.generate(submit)) as outputs:
            async for output in outputs:
                consumed = text.consumed
                piece = text.push(output.token_ids)
                clock.tokens_arrived(text.consumed - consumed)
                if output.finish_reason == "error":
                    raise generation_failed()
                if output.token_ids or output.finish_reason:
                    clock.prompt_read(prompt_tokens)
                if output.finish_reason is not None:
                    piece += text.finish()
                logprobs.add(output)
                end = clock.finish_reason = "stop" if text.is_stopped else output.finish_reason
                scored = prompt.take(output)
                if piece or end or scored:
                    cached_tokens = output.cached_tokens if pays else 0
                    usage = Usage(prompt_tokens, text.consumed, cached_tokens)
                    entries = logprobs.take(text.released)
                    offsets = text.starts(text.released - len(entries or ()), text.released)
                    yield Delta(index, piece, end, entries, usage, offsets, scored)
                if end:
                    return


def _detokenizer(submit: Submit, request: Parameters, served: ServedModel) -> Detokenizer:
    tokenizer = served.tokenizer
    context = context_of(submit.prompt_ids, tokenizer) if request.continues_text else []
    hidden, min_tokens = submit.stop_token_ids, submit.sampling.min_tokens
    return Detokenizer(tokenizer, request.stop, hidden, min_tokens, context)


def _total(usages: dict[int, Usage]) -> Usage:
    """The request's, of the choices that have told theirs."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages.values()),
        completion_tokens=sum(usage.completion_tokens for usage in usages.values()),
        cached_tokens=sum(usage.cached_tokens for usage in usages.values()),
    )
