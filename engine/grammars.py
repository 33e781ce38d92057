"""Requests that wait for their grammar, and the thread that compiles it while others are served.

submit ──> waiting ── compiled ──> settled: ready, its matcher made ──> matcher
               └── refused, with the reason ──> settled
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from .grammar.regexes import GrammarError
from .grammar.sources import Source, source_of
from .grammar.structural_tags import MAX_BLANKS
from .messages import Grammar, Submit
from .vocabulary import read_vocabulary

if TYPE_CHECKING:
    import xgrammar

    from .matcher import Matcher

COMPILE_SECONDS = 30.0
CACHED_BYTES = 128 * 1024 * 1024
CACHED_GRAMMARS = 128


@dataclass(eq=False, slots=True)
class _Job:
    """One grammar on its way: `compiled` or `error` is there once it is `done`."""

    grammar: Grammar
    started: float | None = None
    compiled: xgrammar.CompiledGrammar | None = None
    num_bytes: int = 0
    error: str = ""
    done: threading.Event = field(default_factory=threading.Event)


class Grammars:
    """All but the compiling runs in the engine's thread. Nothing is loaded before it is needed."""

    def __init__(self, folder: Path, vocab_size: int, end_ids: Collection[int]) -> None:
        self._vocab_size = vocab_size
        self._compiler = _Compiler(folder, vocab_size, end_ids)
        self._jobs: OrderedDict[Grammar, _Job] = OrderedDict()  # newest last
        self._waiting: dict[str, tuple[Submit, _Job]] = {}
        self._ready: dict[str, Matcher] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: Submit) -> None:
        """Compile the request's grammar, unless that is done or under way."""
        assert request.grammar is not None
        job = self._jobs.get(request.grammar)
        if job is None:
            self._evict()
            job = self._jobs[request.grammar] = _Job(request.grammar)
            self._compiler.submit(job)
        self._jobs.move_to_end(request.grammar)
        self._waiting[request.request_id] = request, job

    def abort(self, request_id: str) -> None:
        """Forget a request wherever it is; unknown ids are ignored."""
        self._waiting.pop(request_id, None)
        self._ready.pop(request_id, None)

    def settle(self, seconds: float) -> tuple[list[Submit], list[tuple[Submit, str]]]:
        """Requests whose grammar is ready now, and those that are refused, with the reason.

        Waits up to `seconds` for the first one.
        """
        if self._waiting and seconds:
            _, job = next(iter(self._waiting.values()))
            job.done.wait(seconds)
        ready: list[Submit] = []
        refused: list[tuple[Submit, str]] = []
        for request, job in list(self._waiting.values()):
            if job.done.is_set() or _is_late(job):
                del self._waiting[request.request_id]
                try:
                    self._ready[request.request_id] = self._matcher(request, job)
                    ready.append(request)
                except GrammarError as error:
                    refused.append((request, str(error)))
        return ready, refused

    def matcher(self, request: Submit) -> Matcher | None:
        """The matcher of a request that is ready, once; None for one without a grammar."""
        return self._ready.pop(request.request_id, None)

    def _matcher(self, request: Submit, job: _Job) -> Matcher:
        from .matcher import Matcher  # imports xgrammar

        if job.compiled is None:
            raise GrammarError(job.error or f"it did not compile within {COMPILE_SECONDS:.0f} s")
        matcher = Matcher(job.compiled, request, self._vocab_size)
        matcher.advance(request.output_ids)
        if not request.output_ids and matcher.closing([]) is not None:
            raise GrammarError("no text of the model's tokens, other than none, follows it")
        return matcher

    def _evict(self) -> None:
        total = sum(job.num_bytes for job in self._jobs.values())
        for grammar, job in list(self._jobs.items()):
            if total <= CACHED_BYTES and len(self._jobs) < CACHED_GRAMMARS:
                return
            if job.done.is_set():
                total -= job.num_bytes
                del self._jobs[grammar]


def _is_late(job: _Job) -> bool:
    return job.started is not None and time.monotonic() - job.started > COMPILE_SECONDS


class _Compiler:
    """A thread of its own: xgrammar lets go of the interpreter while it compiles."""

    def __init__(self, folder: Path, vocab_size: int, end_ids: Collection[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._queue: SimpleQueue[_Job] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._xgrammar: xgrammar.GrammarCompiler | None = None

    def submit(self, job: _Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="grammars", daemon=True)
            self._thread.start()
        self._queue.put(job)

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            job.started = time.monotonic()
            try:
                source = source_of(job.grammar.kind, job.grammar.text)
                job.compiled = compile_source(self._loaded(), source)
                job.num_bytes = job.compiled.memory_size_bytes
            except GrammarError as error:
                job.error = str(error)
            except Exception as error:  # noqa: BLE001  # whatever it is, its request is told
                job.error = _reason(error)
            job.done.set()

    def _loaded(self) -> xgrammar.GrammarCompiler:
        if self._xgrammar is None:
            import xgrammar

            vocabulary = read_vocabulary(self._folder, self._vocab_size, self._end_ids)
            tokens = xgrammar.TokenizerInfo(
                vocabulary, xgrammar.VocabType.RAW, vocab_size=self._vocab_size, stop_token_ids=[]
            )
            threads = max(1, (os.cpu_count() or 1) // 4)
            self._xgrammar = xgrammar.GrammarCompiler(
                tokens, max_threads=threads, cache_enabled=False
            )
        return self._xgrammar


def compile_source(compiler: xgrammar.GrammarCompiler, source: Source) -> xgrammar.CompiledGrammar:
    """Raises what xgrammar raises for a source that it does not take."""
    match source.language:
        case "json_schema":
            return compiler.compile_json_schema(source.text, max_whitespace_cnt=MAX_BLANKS)
        case "regex":
            return compiler.compile_regex(source.text)
        case "ebnf":
            return compiler.compile_grammar(source.text)
        case "structural_tag":
            return compiler.compile_structural_tag(source.text)


_PLACE = re.compile(r"^\[[0-9:]+\] \S+:[0-9]+: ")  # the time, and a line of xgrammar's own code


def _reason(error: Exception) -> str:
    """What xgrammar has against a grammar, as one line."""
    lines = _PLACE.sub("", str(error)).splitlines()
    return f"it does not compile: {lines[0][:200]}" if lines else "it does not compile"
