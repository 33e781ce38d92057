"""Prompt lookup, also called n-gram speculation (Saxena 2023): the output looked up in itself.

    text   the cat sat on the mat and the
                              ^ place: behind the latest earlier n-gram that the text ends with

The known text is the request's prompt and its output so far, and grows with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

from .config import NGrams
from .lookup import MAX_RUN, Lookup, Place

FIRST_CHANCES: tuple[float, ...] = (0.0, 0.4, 0.65, 0.8, 0.9, 0.95)


class OwnText:
    """Prompt and output, with the latest place behind each of their n-grams."""

    def __init__(self, tokens: Sequence[int], ngrams: NGrams) -> None:
        self.tokens = list(tokens)
        self.start = self._nowhere()
        self.chances = FIRST_CHANCES
        self._ngrams = ngrams
        sizes = range(ngrams.prompt_lookup_max, ngrams.prompt_lookup_min - 1, -1)
        self._latest = {size: _latest_places(self.tokens, size) for size in sizes}

    def seek(self, place: Place, recent: Sequence[int]) -> Place:
        """Behind the longest n-gram that `recent` ends with and the text before it has."""
        for size, latest in self._latest.items():
            if (at := latest.get(tuple(recent[-size:]))) is not None:
                return Place(at, size, at)
        return self._nowhere()

    def read(self, at: int, limit: int) -> list[int]:
        """The tokens from `at` on, and the same again where they end: what repeats goes on so."""
        limit = min(limit, self._ngrams.num_speculative_tokens)
        return list(islice(cycle(self.tokens[at : at + limit]), limit))

    def append(self, token: int) -> None:
        """Index the n-grams that the token ends."""
        self.tokens.append(token)
        newest = tuple(self.tokens[-self._ngrams.prompt_lookup_max :])
        for size, latest in self._latest.items():
            if size <= len(newest):
                latest[newest[-size:]] = len(self.tokens)

    def _nowhere(self) -> Place:
        """Behind the token that comes next, and so never followed."""
        behind = len(self.tokens) + 1
        return Place(behind, 0, behind)


def prompt_lookup(tokens: Sequence[int], ngrams: NGrams) -> Lookup:
    """At the end of a prompt, or of a prompt and what is known of its output."""
    lookup = Lookup(OwnText(tokens[:-MAX_RUN], ngrams))
    lookup.extend(tokens[-MAX_RUN:])
    return lookup


def _latest_places(tokens: Sequence[int], size: int) -> dict[tuple[int, ...], int]:
    ngrams = zip(*(tokens[first:] for first in range(size)), strict=False)
    return {ngram: at for at, ngram in enumerate(ngrams, start=size)}
