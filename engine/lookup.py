"""Next tokens looked up in a known text that the output follows, in stretches.

    known    a b c d e f g h i j          a text that the output is expected to resemble
    output   a b c X e f
                       ^ place: known token 6, behind a run of 2 that agree

While the output follows the known text, what comes next there is proposed. Where it leaves, the
text is asked for another place: the client's prediction (`predicted_text.py`), or the request's own
prompt and output (`own_text.py`). How far to trust a place is learnt from all output, proposed or
not. Knows no model and no request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_RUN = 16  # longer agreements are all alike
LEARNING_RATE = 0.1  # of the chance that a place is right


@dataclass(frozen=True, slots=True)
class Place:
    """The known token `at` is expected next, the `run` before it agreed with the output.

    The output left the known text before token `left`, if the run is short.
    """

    at: int
    run: int
    left: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens that may come next; `expected[n]` is how many of the first n will prove right."""

    tokens: list[int]
    expected: list[float]


class KnownText(Protocol):
    """Where next tokens are looked up, from the place `start` on.

    `chances` are first guesses that the next token is right, by the binary length of the run that
    agrees with the output: 0, 1, 2-3, 4-7, 8-15, 16 and more.
    """

    tokens: list[int]
    start: Place
    chances: tuple[float, ...]

    def seek(self, place: Place, recent: Sequence[int]) -> Place:
        """Where to go on when the newest token, the last of `recent`, is not that at `place`."""
        ...

    def read(self, at: int, limit: int) -> list[int]:
        """What is expected from token `at` on, at most `limit` tokens."""
        ...

    def append(self, token: int) -> None:
        """The output has one more token, whose place was sought."""
        ...


class Lookup:
    """A place in one known text, and what was learnt on the way there."""

    def __init__(self, text: KnownText) -> None:
        self._text = text
        self._recent: list[int] = []  # the newest MAX_RUN tokens of the output
        self._place = text.start
        self._chances = list(text.chances)

    def extend(self, tokens: Iterable[int]) -> None:
        """Follow the output by `tokens`, and learn from them."""
        for token in tokens:
            self._learn(token)
            self._recent = [*self._recent[1 - MAX_RUN :], token]
            self._place = self._next(self._place, self._recent)
            self._text.append(token)

    def propose(self, ahead: Sequence[int], limit: int) -> Proposal:
        """At most `limit` tokens behind the output so far and `ahead`, which stays unlearnt."""
        place, recent = self._place, self._recent
        for token in ahead:
            recent = [*recent[1 - MAX_RUN :], token]
            place = self._next(place, recent)
        tokens = self._text.read(place.at, max(0, limit))
        expected, reach = [0.0], 1.0
        for number in range(len(tokens)):
            reach *= self._chances[_kind(place.run + number)]
            expected.append(expected[-1] + reach)
        return Proposal(tokens, expected)

    def _learn(self, token: int) -> None:
        place, known = self._place, self._text.tokens
        if place.at < len(known):
            kind, is_right = _kind(place.run), known[place.at] == token
            self._chances[kind] += LEARNING_RATE * (is_right - self._chances[kind])

    def _next(self, place: Place, recent: Sequence[int]) -> Place:
        """The place behind the newest token, which is the last of `recent`."""
        known = self._text.tokens
        if place.at < len(known) and known[place.at] == recent[-1]:
            return Place(place.at + 1, place.run + 1, place.at + 1)
        return self._text.seek(place, recent)


def _kind(run: int) -> int:
    return min(run, MAX_RUN).bit_length()
