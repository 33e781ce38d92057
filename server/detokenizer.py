"""Token ids to text while they arrive: whole characters only, cut at the first stop string."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Protocol

_INCOMPLETE = "\ufffd"
_CONTEXT = 8  # tokens: more than a character has


class Decodes(Protocol):
    """What a tokenizer must offer; special ids never reach `decode`."""

    @property
    def special_ids(self) -> Collection[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class StopStrings:
    """Finds the stop string that is complete first; of two that end together, the longer.

    The rule is about characters, not pieces, so how the text was split cannot change the cut.
    Text that may still turn out to be the start of a stop string is held back.

        stops ["END"]   push("a E") -> "a "    push("N") -> ""    push("x") -> "ENx"
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.is_hit = False

    def push(self, text: str, may_stop: bool = True) -> str:
        """The text that is now certain. Nothing follows once `is_hit`.

        Only a stop string that ends in `text` counts, and none unless `may_stop`.
        """
        known, text = len(self._held), self._held + text
        found = [
            (at + len(stop), at)
            for stop in self._stops
            if (at := text.find(stop, max(0, known + 1 - len(stop)))) >= 0
        ]
        if found and may_stop:
            self.is_hit, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, at the end of the output."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def context_of(prompt_ids: Sequence[int], tokenizer: Decodes) -> list[int]:
    """The end of a prompt's text, for a text that continues it.

    Some decoders drop the space in front of the first token that they see. Empty where there is no
    text right before what follows, or where that ends within a character.
    """
    words = takewhile(lambda i: i not in tokenizer.special_ids, reversed(prompt_ids[-_CONTEXT:]))
    context = [*words][::-1]
    return [] if tokenizer.decode(context).endswith(_INCOMPLETE) else context


class Detokenizer:
    """Text of one request. Pieces joined are the whole decode, cut at the first stop string.

    `hidden` ids, the request's stop tokens, are no text, and special ones neither, as in vLLM,
    unless they are `shown`. A stop string counts if it ends in the text of a token behind the first
    `min_tokens`. The text continues that of `context`, which is not given again.

    Decoding needs two offsets into the ids: text is the difference of decoding a window with and
    without the newest ids, since some decoders treat the first token of what they see differently.

        ids      [ . . . . | p p | r r r ]      p: read before, context only    r: not yet text
                           ^prefix ^read
    """

    def __init__(
        self,
        tokenizer: Decodes,
        stops: Sequence[str] = (),
        hidden: Collection[int] = (),
        min_tokens: int = 0,
        context: Sequence[int] = (),
        shown: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = StopStrings(stops)
        self._hidden = (frozenset(tokenizer.special_ids) - frozenset(shown)) | frozenset(hidden)
        self._min_tokens = min_tokens
        self._ids: list[int] = [*context]
        self._prefix = 0
        self._read = len(self._ids)
        self._length = 0  # characters of text, given or held back for a stop string
        self._given = 0  # characters given
        self._starts: list[int] = []  # where the text of each token that has become text starts
        self._ends: list[int] = []  # and ends; tokens that share a character share both
        self._is_over = False
        self.consumed = 0

    @property
    def is_stopped(self) -> bool:
        """True when a stop string ended the text; `consumed` then counts its last token."""
        return self._stops.is_hit

    @property
    def released(self) -> int:
        """How many tokens, from the first, have their whole text given: all at the end."""
        return self.consumed if self._is_over else bisect_right(self._ends, self._given)

    def starts(self, first: int, stop: int) -> list[int]:
        """Where the text of tokens `first` to `stop`, all released, starts, in characters."""
        known = self._starts[first:stop]
        return known + [self._end] * (stop - first - len(known))

    @property
    def _end(self) -> int:
        """Where the text ends that is made of whole characters."""
        return self._ends[-1] if self._ends else 0

    def push(self, token_ids: Sequence[int]) -> str:
        """New text of these tokens; those after a completed stop string are not consumed."""
        pieces = []
        for token_id in token_ids:
            if self.is_stopped:
                break
            self.consumed += 1
            if token_id not in self._hidden:
                self._ids.append(token_id)
                pieces.append(self._push_text(is_last=False))
            if self._read == len(self._ids):  # nothing waits for the rest of its character
                count = self.consumed - len(self._ends)
                self._starts += [self._end] * count
                self._ends += [self._length] * count
        return "".join(pieces)

    def finish(self) -> str:
        """What was held back, at the end: broken characters as U+FFFD, half stops as text."""
        if self.is_stopped:
            return ""
        piece = self._push_text(is_last=True)
        return piece if self.is_stopped else piece + self._stops.flush()

    def _push_text(self, is_last: bool) -> str:
        """The newest ids' text through the stop strings: what of it is certain."""
        text = self._new_text(is_last)
        piece = self._stops.push(text, may_stop=self.consumed > self._min_tokens)
        self._length += len(text)
        self._given += len(piece)
        self._is_over = is_last or self.is_stopped
        return piece

    def _new_text(self, is_last: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._prefix : self._read])
        text = self._tokenizer.decode(self._ids[self._prefix :])
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not is_last):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return text[len(before) :]
