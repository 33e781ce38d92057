"""The one stream that both kinds of reply are made of: text, as soon as tokens make it certain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engine.messages import Submit

from .detokenizer import Detokenizer, context_of
from .errors import generation_failed
from .figures import Figures, Tally, total
from .logprobs import LogprobsQueue, PromptEntries
from .merging import merged
from .parameters import Parameters
from .served import ServedModel
from .traces import step_trace


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
    before the first text. `usage` and `figures` are the whole request's so far. `trace` is that of
    the step, for a request that asks: a delta may then hold nothing else.
    """

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: list[dict[str, Any]] | None
    usage: Usage
    figures: Figures
    offsets: list[int] = field(default_factory=list)
    prompt_logprobs: list[dict[str, Any]] = field(default_factory=list)
    trace: dict[str, Any] | None = None


async def deltas(
    submits: Sequence[Submit], request: Parameters, served: ServedModel
) -> AsyncGenerator[Delta, None]:
    """Run the request; yield a delta for each step that made text certain, and each choice's last.

    Ends when every choice has had its delta with a finish reason. Closing it early aborts them all
    in the engine. Raises `EngineDied`, or `ApiError` when the engine failed on one of them.
    """
    choices = [_choice_deltas(index, s, request, served) for index, s in enumerate(submits)]
    usages: dict[int, Usage] = {}
    figures: dict[int, Figures] = {}
    async with aclosing(merged(choices)) as stream:
        async for delta in stream:
            usages[delta.index], figures[delta.index] = delta.usage, delta.figures
            yield replace(delta, usage=_total(usages), figures=total(figures.values()))


async def _choice_deltas(
    index: int, submit: Submit, request: Parameters, served: ServedModel
) -> AsyncGenerator[Delta, None]:
    """The deltas of one choice; usage and figures are its own. A prompt's first choice pays."""
    text = _detokenizer(submit, request, served)
    logprobs = LogprobsQueue(submit, served.tokenizer)
    prompt = PromptEntries(submit, served.tokenizer)
    tally = Tally()
    pays = index % request.num_choices == 0
    prompt_tokens = len(submit.prompt_ids) if pays else 0
    with served.metrics.request_started() as clock:
        async with aclosing(served.engine.generate(submit)) as outputs:
            async for output in outputs:
                before = text.consumed
                piece = text.push(output.token_ids)
                consumed = text.consumed - before
                clock.tokens_arrived(consumed)
                if output.finish_reason == "error":
                    raise generation_failed()
                if output.token_ids or output.finish_reason:
                    clock.prompt_read(prompt_tokens)
                if output.finish_reason is not None:
                    piece += text.finish()
                logprobs.add(output)
                figures = tally.add(output, consumed)
                trace = step_trace(index, output, consumed, served.tokenizer)
                end = clock.finish_reason = "stop" if text.is_stopped else output.finish_reason
                scored = prompt.take(output)
                if piece or end or scored or trace:
                    cached_tokens = output.cached_tokens if pays else 0
                    usage = Usage(prompt_tokens, text.consumed, cached_tokens)
                    entries = logprobs.take(text.released)
                    offsets = text.starts(text.released - len(entries or ()), text.released)
                    yield Delta(index, piece, end, entries, usage, figures, offsets, scored, trace)
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
