"""The one stream that both kinds of reply are made of: text, as soon as tokens make it certain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engine.grammar.sources import TAGS
from engine.messages import RequestOutput, Submit

from .detokenizer import Detokenizer, context_of
from .errors import generation_failed
from .figures import Figures, Tally, total
from .logprobs import LogprobsQueue, PromptEntries
from .merging import merged
from .parameters import Parameters
from .parts import Part, merge_neighbours
from .reading import Reading
from .request_metrics import RequestClock
from .served import ServedModel
from .structured import refused_by_engine
from .tokenizer import ChatTokenizer
from .traces import step_trace

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What was added to a choice; its last one has a finish reason and may have nothing else.

    `text` is as the model wrote it, `parts` are what it means; theirs may come later than `text`.
    `logprobs` has the entries of all tokens whose text this delta completes, of those without text
    too, or is None for a request that did not ask; `offsets` are where these texts start in the
    choice's, in characters. `prompt_logprobs` has the entries of the prompt's next tokens: all come
    before the first text. `usage` and `figures` are the whole request's so far. `trace` is that of
    the step, for a request that asks: a delta may then hold nothing else.
    """

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: list[dict[str, Any]] | None
    usage: Usage
    figures: Figures = field(default_factory=Figures)
    offsets: list[int] = field(default_factory=list)
    prompt_logprobs: list[dict[str, Any]] = field(default_factory=list)
    trace: dict[str, Any] | None = None
    parts: list[Part] = field(default_factory=list)


async def deltas(
    submits: Sequence[Submit],
    request: Parameters,
    reading: Reading,
    served: ServedModel,
    clocks: Sequence[RequestClock],
) -> AsyncGenerator[Delta, None]:
    """Run the request; yield a delta for each step that made text certain, and each choice's last.

    With an `interval` the first token has a delta of its own instead, and then every so many
    tokens have one. Ends when every choice has had its delta with a finish reason. Closing it early
    aborts them all in the engine. Each has its clock. Raises `EngineDied`, or `ApiError` when the
    engine failed on one.
    """
    choices = [
        _Choice(index, submit, request, reading, served.tokenizer)
        for index, submit in enumerate(submits)
    ]
    streams = [
        _choice_deltas(choice, served, clock) for choice, clock in zip(choices, clocks, strict=True)
    ]
    usages: dict[int, Usage] = {}
    figures: dict[int, Figures] = {}
    async with aclosing(merged(streams)) as stream:
        async for delta in stream:
            usages[delta.index], figures[delta.index] = delta.usage, delta.figures
            yield replace(delta, usage=_total(usages), figures=total(figures.values()))


async def _choice_deltas(
    choice: _Choice, served: ServedModel, clock: RequestClock
) -> AsyncGenerator[Delta, None]:
    """The deltas of one choice; usage and figures are its own."""
    with clock:
        async with aclosing(served.engine.generate(choice.submit)) as outputs:
            async for output in outputs:
                consumed = choice.consumed
                found = choice.take(output)
                if output.refusal:
                    raise refused_by_engine(choice.request, output.refusal)
                if output.finish_reason == "error":
                    raise generation_failed()
                clock.arrived(output, choice.consumed - consumed)
                end = found[-1].finish_reason if found else None
                if end is not None:
                    clock.finish_reason = "length" if end == "length" else "stop"
                for delta in found:
                    yield delta
                if end is not None:
                    return


class _Choice:
    """One choice's tokens on their way to deltas. A prompt's first choice pays for it.

    They are taken one by one, so that what comes out, and how many tokens it cost, is the same
    however many of them a step accepted.
    """

    def __init__(
        self,
        index: int,
        submit: Submit,
        request: Parameters,
        reading: Reading,
        tokenizer: ChatTokenizer,
    ) -> None:
        self.submit = submit
        self.request = request
        self._index = index
        self._pays = index % request.num_choices == 0
        self.prompt_tokens = len(submit.prompt_ids) if self._pays else 0
        self._interval = request.stream_interval
        self._end_of_calls = reading.end_of_calls
        self._reader = reading.reader()
        shown = reading.tags | TAGS if submit.grammar else reading.tags
        self._detokenizer = Detokenizer(
            tokenizer,
            request.stop,
            submit.stop_token_ids,
            submit.sampling.min_tokens,
            context_of(submit.prompt_ids, tokenizer) if request.continues_text else [],
            tokenizer.ids_of(shown),
        )
        self._tokenizer = tokenizer
        self._tally = Tally()
        self._logprobs = LogprobsQueue(submit, tokenizer)
        self._prompt_entries = PromptEntries(submit, tokenizer)
        self._text = ""
        self._parts: list[Part] = []
        self._scored: list[dict[str, Any]] = []
        self._reasoning_tokens = 0

    @property
    def consumed(self) -> int:
        """How many tokens the answer has; what the engine sent beyond its end is not counted."""
        return self._detokenizer.consumed

    def take(self, output: RequestOutput) -> list[Delta]:
        """The deltas that one step makes certain; behind one with a finish reason is none."""
        before = self.consumed
        found = self._found(output)
        consumed = self.consumed - before
        figures = self._tally.add(output, consumed)
        trace = step_trace(self._index, output, consumed, self._tokenizer)
        if trace is not None and not found:
            found = [self._empty(output)]
        return [
            replace(delta, figures=figures, trace=trace if delta is found[-1] else None)
            for delta in found
        ]

    def _found(self, output: RequestOutput) -> list[Delta]:
        found = []
        self._logprobs.add(output)
        self._scored = self._prompt_entries.take(output)
        for token_id in output.token_ids:
            self._read(self._detokenizer.push([token_id]))
            if self._is_over:
                break
            if self._parts and self._is_due:
                found.append(self._delta(output, None))
        if self._is_over or output.finish_reason is not None:
            self._read(self._detokenizer.finish())
            self._parts += self._reader.finish()
            found.append(self._delta(output, self._end(output)))
        elif self._scored or (self._parts and self._interval is None):
            found.append(self._delta(output, None))
        return found

    def _read(self, text: str) -> None:
        """A token that ends the reasoning, or begins it, belongs to it."""
        was_reasoning = self._reader.is_reasoning
        self._text += text
        self._parts += self._reader.push(text)
        if was_reasoning or self._reader.is_reasoning:
            self._reasoning_tokens = self.consumed

    @property
    def _is_over(self) -> bool:
        return self._detokenizer.is_stopped or self._reader.is_over

    @property
    def _is_due(self) -> bool:
        return self._interval is not None and (self.consumed - 1) % self._interval == 0

    def _end(self, output: RequestOutput) -> FinishReason:
        if output.finish_reason == "length" and not self._is_over:
            return "length"
        return self._end_of_calls if self._reader.has_calls else "stop"

    def _delta(self, output: RequestOutput, finish_reason: FinishReason | None) -> Delta:
        """All that has become certain since the last one."""
        text, parts, scored = self._text, self._parts, self._scored
        self._text, self._parts, self._scored = "", [], []
        released = self._detokenizer.released
        entries = self._logprobs.take(released)
        return replace(
            self._empty(output),
            text=text,
            finish_reason=finish_reason,
            logprobs=entries,
            offsets=self._detokenizer.starts(released - len(entries or ()), released),
            prompt_logprobs=scored,
            parts=merge_neighbours(parts),
        )

    def _empty(self, output: RequestOutput) -> Delta:
        cached_tokens = output.cached_tokens if self._pays else 0
        return Delta(
            index=self._index,
            text="",
            finish_reason=None,
            logprobs=None if self.submit.logprobs is None else [],
            usage=Usage(self.prompt_tokens, self.consumed, cached_tokens, self._reasoning_tokens),
        )


def _total(usages: dict[int, Usage]) -> Usage:
    """The request's, of the choices that have told theirs."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages.values()),
        completion_tokens=sum(usage.completion_tokens for usage in usages.values()),
        cached_tokens=sum(usage.cached_tokens for usage in usages.values()),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages.values()),
    )
