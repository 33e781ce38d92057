"""Token ids to text while they arrive: whole characters only, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

_INCOMPLETE = "\ufffd"


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

    def push(self, text: str) -> str:
        """The text that is now certain. Nothing follows once `is_hit`."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.is_hit, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, at the end of the output."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class Detokenizer:
    """Text of one request. Pieces joined are the whole decode, cut at the first stop string.

    Decoding needs two offsets into the ids: text is the difference of decoding a window with and
    without the newest ids, since some decoders treat the first token of what they see differently.

        ids      [ . . . . | p p | r r r ]      p: read before, context only    r: not yet text
                           ^prefix ^read
    """

    def __init__(self, tokenizer: Decodes, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = StopStrings(stops)
        self._ids: list[int] = []
        self._prefix = 0
        self._read = 0
        self.consumed = 0

    @property
    def is_stopped(self) -> bool:
        """True when a stop string ended the text; `consumed` then counts its last token."""
        return self._stops.is_hit

    def push(self, token_ids: Sequence[int]) -> str:
        """New text of these tokens; those after a completed stop string are not consumed."""
        pieces = []
        for token_id in token_ids:
            if self.is_stopped:
                break
            self.consumed += 1
            if token_id not in self._tokenizer.special_ids:
                self._ids.append(token_id)
                pieces.append(self._stops.push(self._new_text(is_last=False)))
        return "".join(pieces)

    def finish(self) -> str:
        """What was held back, at the end: broken characters as U+FFFD, half stops as text."""
        if self.is_stopped:
            return ""
        piece = self._stops.push(self._new_text(is_last=True))
        return piece if self.is_stopped else piece + self._stops.flush()

    def _new_text(self, is_last: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._prefix : self._read])
        text = self._tokenizer.decode(self._ids[self._prefix :])
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not is_last):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return text[len(before) :]
