"""Which tokens a request's grammar allows: behind its output, and along the path of a draft.

    output, final      path, walked in this step     allowed(path)
    {"name":           "Tom                          "    ",    my    ...

The parser moves along the output and, beyond it, along one path at a time; to another path it goes
back to where the two part.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import xgrammar
from torch import Tensor

from .grammar.regexes import GrammarError
from .messages import FinishReason, Submit

# What a grammar may cost: so many seconds of one thread, and more for each token of output.
SECONDS = 1.0
SECONDS_PER_TOKEN = 0.01


class Matcher:
    """One request's grammar. Raises `GrammarError` from wherever it gets too slow.

    Behind a stop token nothing is governed any more: what follows one is cut off.
    """

    def __init__(
        self, compiled: xgrammar.CompiledGrammar, request: Submit, vocab_size: int
    ) -> None:
        self._parser = xgrammar.GrammarMatcher(compiled)
        self._stops = [token for token in request.stop_token_ids if 0 <= token < vocab_size]
        self._vocab_size = vocab_size
        self._bits = xgrammar.allocate_token_bitmask(1, vocab_size)  # [1, V/32] int32
        self._num_final = 0
        self._ahead: list[int] = []  # what the parser has read behind the final tokens
        self._allowed: Tensor | None = None  # behind all that it has read
        self._seconds = 0.0

    def advance(self, output: Sequence[int]) -> None:
        """Take in what is new in `output`, the final tokens so far."""
        if len(output) > self._num_final:
            with self._budget():
                self._move(output[self._num_final :])
            self._ahead = []
            self._num_final = len(output)

    def allowed(self, path: Sequence[int]) -> Tensor | None:
        """[V] bool, on the CPU: what may follow the output and `path`; None for anything.

        Stop tokens may where the text is complete.
        """
        if any(token in self._stops for token in path):
            return None
        with self._budget():
            self._move(path)
            if self._allowed is None:
                self._allowed = self._fill()
        return self._allowed

    def closing(self, path: Sequence[int]) -> FinishReason | None:
        """Why nothing may follow `path`: "stop" where the text is complete, "error" where no token
        of the vocabulary goes on with it. None where something may.
        """
        allowed = self.allowed(path)
        if allowed is None or bool(allowed.any()):
            return None
        return "stop" if self._parser.is_completed() else "error"

    def _move(self, path: Sequence[int]) -> None:
        """Let the parser stand behind the final tokens and `path`."""
        common = 0
        while common < min(len(path), len(self._ahead)) and path[common] == self._ahead[common]:
            common += 1
        if common < len(self._ahead):
            self._parser.rollback(len(self._ahead) - common)
            self._ahead = self._ahead[:common]
            self._allowed = None
        for token in path[common:]:
            if not self._parser.accept_token(token):
                raise GrammarError(f"token {token} does not follow the grammar")
            self._ahead.append(token)
            self._allowed = None

    def _fill(self) -> Tensor:
        self._parser.fill_next_token_bitmask(self._bits)
        bits = (self._bits[0, :, None] >> torch.arange(32, dtype=torch.int32)) & 1  # [V/32, 32]
        allowed = bits.flatten()[: self._vocab_size].bool()
        if self._parser.is_completed():
            allowed[self._stops] = True
        return allowed

    @contextmanager
    def _budget(self) -> Iterator[None]:
        """A grammar that is ambiguous without end must not hold up everybody else."""
        start = time.thread_time()
        yield
        self._seconds += time.thread_time() - start
        if self._seconds > SECONDS + SECONDS_PER_TOKEN * (self._num_final + len(self._ahead)):
            raise GrammarError("the grammar takes too long to follow; make it less ambiguous")
