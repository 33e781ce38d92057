"""Next tokens looked up in a known text that the output follows, in stretches.

    known    a b c d e f g h i j          a text that the output is expected to resemble
    output   a b c X e f
                       ^ place: known token 6, behind a run of 2 that agree

While the output follows the known text, what comes next there is proposed. Where it leaves, the
place is sought again: by the last two tokens or more, the longest agreement first, then the nearest
place ahead; by the last token alone close by; failing both, as if it had replaced another. How far
to trust a place is learnt from all output, proposed or not. Knows no model and no request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_RUN = 16  # longer agreements are all alike
NEARBY = 16  # tokens ahead in which one token alone, or none, makes a place
MAX_PLACES = 32  # of two tokens, that are compared on either side
START_RUN = 4  # the output is expected to begin as the known text does

# Chance that the next token is right, by the binary length of the run that agrees with the output:
# 0, 1, 2-3, 4-7, 8-15, 16 and more. A first guess, and how fast it learns.
FIRST_CHANCES = (0.25, 0.6, 0.7, 0.9, 0.95, 0.97)
LEARNING_RATE = 0.1


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


class Lookup:
    """A place in one known text, and what was learnt on the way there."""

    def __init__(self, known: Sequence[int]) -> None:
        self._known = list(known)
        self._recent: list[int] = []  # the newest MAX_RUN tokens of the output
        self._place = Place(0, START_RUN, 0)
        self._chances = list(FIRST_CHANCES)
        self._after: dict[tuple[int, int], list[int]] = {}  # places behind two tokens, ascending
        for at in range(2, len(self._known)):
            pair = self._known[at - 2], self._known[at - 1]
            self._after.setdefault(pair, []).append(at)

    def extend(self, tokens: Iterable[int]) -> None:
        """Follow the output by `tokens`, and learn from them."""
        for token in tokens:
            self._learn(token)
            self._recent = [*self._recent[1 - MAX_RUN :], token]
            self._place = self._next(self._place, self._recent)

    def propose(self, ahead: Sequence[int], limit: int) -> Proposal:
        """At most `limit` tokens behind the output so far and `ahead`, which stays unlearnt."""
        place, recent = self._place, self._recent
        for token in ahead:
            recent = [*recent[1 - MAX_RUN :], token]
            place = self._next(place, recent)
        tokens = self._known[place.at : place.at + max(0, limit)]
        expected, reach = [0.0], 1.0
        for number in range(len(tokens)):
            reach *= self._chances[_kind(place.run + number)]
            expected.append(expected[-1] + reach)
        return Proposal(tokens, expected)

    def _learn(self, token: int) -> None:
        place = self._place
        if place.at < len(self._known):
            kind, is_right = _kind(place.run), self._known[place.at] == token
            self._chances[kind] += LEARNING_RATE * (is_right - self._chances[kind])

    def _next(self, place: Place, recent: Sequence[int]) -> Place:
        """The place behind the newest token, which is the last of `recent`."""
        token = recent[-1]
        if self._known[place.at : place.at + 1] == [token]:
            return Place(place.at + 1, place.run + 1, place.at + 1)
        return self._found(place.left, recent) or self._assumed(place, token)

    def _found(self, left: int, recent: Sequence[int]) -> Place | None:
        """The place behind the most tokens that agree, two at least; of equals the nearest."""
        if len(recent) < 2:
            return None
        places = self._after.get((recent[-2], recent[-1]), [])
        middle = bisect_left(places, left)
        ahead = places[middle : middle + MAX_PLACES]
        behind = places[max(0, middle - MAX_PLACES) : middle]
        runs = {at: self._run(at, recent) for at in (*ahead, *reversed(behind))}
        at = max(runs, key=runs.__getitem__, default=None)  # the first of equals
        return None if at is None else Place(at, runs[at], at)

    def _run(self, at: int, recent: Sequence[int]) -> int:
        """How many tokens before `at` agree with the newest of the output."""
        most = min(at, len(recent))
        return next(
            (n for n in range(most) if self._known[at - 1 - n] != recent[-1 - n]),
            most,
        )

    def _assumed(self, place: Place, token: int) -> Place:
        """Some tokens were left out, or else the last one was replaced; beyond, who knows."""
        nearby = self._known[place.left : place.left + NEARBY]
        if token in nearby:
            at = place.left + nearby.index(token) + 1
            return Place(at, 1, at)
        has_just_left = place.at == place.left
        return Place(place.at + 1 if has_just_left else len(self._known), 0, place.left)


def _kind(run: int) -> int:
    return min(run, MAX_RUN).bit_length()
