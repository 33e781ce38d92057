"""The client's prediction of the output, and how its place is found again where the output left it.

By the last two tokens or more, the longest agreement first, then the nearest place ahead; by the
last token alone close by; failing both, as if it had replaced another.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .lookup import Place

NEARBY = 16  # tokens ahead in which one token alone, or none, makes a place
MAX_PLACES = 32  # of two tokens, that are compared on either side
START_RUN = 4  # the output is expected to begin as the known text does
FIRST_CHANCES: tuple[float, ...] = (0.25, 0.6, 0.7, 0.9, 0.95, 0.97)


class PredictedText:
    """Tokens that do not change, indexed by pairs."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.start = Place(0, START_RUN, 0)
        self.chances = FIRST_CHANCES
        self._after: dict[tuple[int, int], list[int]] = {}  # places behind two tokens, ascending
        for at in range(2, len(self.tokens)):
            pair = self.tokens[at - 2], self.tokens[at - 1]
            self._after.setdefault(pair, []).append(at)

    def seek(self, place: Place, recent: Sequence[int]) -> Place:
        """Behind the longest agreement with `recent`; else where it may be."""
        return self._found(place.left, recent) or self._assumed(place, recent[-1])

    def read(self, at: int, limit: int) -> list[int]:
        """The tokens from `at` on."""
        return self.tokens[at : at + limit]

    def append(self, token: int) -> None:
        """Nothing: the prediction is what the client sent."""

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
            (n for n in range(most) if self.tokens[at - 1 - n] != recent[-1 - n]),
            most,
        )

    def _assumed(self, place: Place, token: int) -> Place:
        """Some tokens were left out, or else the last one was replaced; beyond, who knows."""
        nearby = self.tokens[place.left : place.left + NEARBY]
        if token in nearby:
            at = place.left + nearby.index(token) + 1
            return Place(at, 1, at)
        has_just_left = place.at == place.left
        return Place(place.at + 1 if has_just_left else len(self.tokens), 0, place.left)
