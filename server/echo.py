"""A prompt as it is given back in front of its completion."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .detokenizer import Detokenizer
from .tokenizer import ChatTokenizer, EncodedText


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """Its text, and where each token's own starts in it, in characters."""

    text: str
    starts: list[int]

    def __len__(self) -> int:
        return len(self.starts)

    def piece(self, first: int, stop: int) -> str:
        """The text of tokens `first` to `stop`."""
        edges = [*self.starts[first : stop + 1], len(self.text)]
        return self.text[edges[0] : edges[stop - first]]


def echo(text: str | None, prompt: EncodedText, tokenizer: ChatTokenizer) -> EchoedPrompt:
    """A prompt's text as it was sent, or if it was sent as ids, theirs, special tokens by name.

    What the tokenizer added to a text has none. Where a tokenizer does not give a text back as it
    was, the starts are those of what it gives back, and at most the text's length.
    """
    known = zip(prompt.ids, prompt.is_added, strict=True)
    ids = [token for token, is_added in known if not is_added]
    read = Detokenizer(_ByName(tokenizer))
    whole = read.push(ids) + read.finish()
    text = whole if text is None else text
    starts, count = [], 0
    for is_added in prompt.is_added:
        starts += read.starts(count, count + 1)
        count += not is_added
    return EchoedPrompt(text, [min(start, len(text)) for start in starts])


class _ByName:
    """A tokenizer to whose text special tokens belong."""

    special_ids: Collection[int] = frozenset()

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)
