"""Guesses of what a drafter will name next, so that it can name several tokens at once.

The last tokens of a draft in the making are looked up in the request's text, and in all that was
drafted for it before: what followed them last is the guess. A guess is never verified, and a wrong
one costs a little time: `drafter/draft.py` tells how it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

from drafter.protocol import Guess

LONGEST = 4  # tokens that are looked up together; where they are not found, fewer


class Guesses:
    """What followed each n-gram of one request's text and drafts, the newest alone."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}
        self._num_read = 0  # tokens of the text

    def behind(self, text: Sequence[int], provisional: Sequence[int]) -> Guess:
        """For one draft behind a text, which only grows from draft to draft, and behind tokens that
        may not stay. Nothing is read unless a guess is asked for.
        """
        newest = [*text[-LONGEST:], *provisional]
        num_drafted = 0

        def guess(path: Sequence[int], limit: int) -> list[int]:
            nonlocal num_drafted
            self._follow(text)
            tokens = [*newest, *path]
            self._read(tokens, len(newest) + num_drafted)
            num_drafted = len(path)
            end = len(tokens)
            while len(tokens) < end + limit and (token := self._successor(tokens)) is not None:
                tokens.append(token)
            return tokens[end:]

        return guess

    def _follow(self, text: Sequence[int]) -> None:
        """Read what has come to the text."""
        if self._num_read < len(text):
            start = max(0, self._num_read - LONGEST)
            self._read(text[start:], self._num_read - start)
            self._num_read = len(text)

    def _read(self, tokens: Sequence[int], first: int) -> None:
        """Learn what tokens `first` and later follow."""
        for at in range(max(1, first), len(tokens)):
            for start in range(max(0, at - LONGEST), at):
                self._next[tuple(tokens[start:at])] = tokens[at]

    def _successor(self, tokens: Sequence[int]) -> int | None:
        """Of the longest n-gram that the tokens end with and that is known."""
        for size in range(LONGEST, 0, -1):
            if (token := self._next.get(tuple(tokens[-size:]))) is not None:
                return token
        return None
