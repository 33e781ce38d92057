"""One running request: its tokens, its slot, and how far it is committed."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .guesses import Guesses
from .lookup import Lookup
from .messages import FinishReason, Source, Submit

if TYPE_CHECKING:
    from .matcher import Matcher
    from .processors import Processors


@dataclass(slots=True)
class Sequence:
    """A request in a slot. `ids` are prompt and output, all of them final.

    `length` KV columns are committed: in the end those of all ids but the last, of which the first
    `cached_tokens` were there before; where the prompt is scored, the first `scored` of them have
    been. `provisional` tokens follow the ids where rows off the top-1 chain picked them; the next
    step verifies them once more. Tokens of a `stretch`, of the client's prediction or of its own
    text, are what that step verifies as a chain; where there are none it drafts a tree. `matcher`
    is that of the request's grammar. `processors` and `lookups` are made by the sampler and by
    `prediction.py`, for a request that needs them. `admitted` is when it got its slot, in
    `perf_counter`'s seconds.
    """

    request: Submit
    slot: int
    ids: list[int] = field(default_factory=list)
    provisional: list[int] = field(default_factory=list)
    provisional_sources: list[Source] = field(default_factory=list)
    stretch: list[int] = field(default_factory=list)
    stretch_source: Source = "drafted"
    finish_reason: FinishReason | None = None
    length: int = 0
    cached_tokens: int = 0
    scored: int = 0
    speculates: bool = True
    admitted: float = 0.0
    matcher: Matcher | None = None
    processors: Processors | None = None
    guesses: Guesses = field(default_factory=Guesses)
    lookups: dict[Source, Lookup] | None = None

    def __post_init__(self) -> None:
        self.ids = [*self.request.prompt_ids, *self.request.output_ids]
        self.scored = self.request.scores_given
        self.speculates = self.request.speculative and self.request.max_tokens > 0

    @property
    def is_prefilled(self) -> bool:
        """Whether the last token is the only one without keys and values, and all are scored."""
        return self.next_row == len(self.ids) - 1

    @property
    def num_scores(self) -> int:
        """How many of the prompt's tokens are to be scored: all but the first, or none."""
        return 0 if self.request.prompt_logprobs is None else len(self.request.prompt_ids) - 1

    @property
    def next_row(self) -> int:
        """The first row that prefill has still to compute, or to score where it was cached."""
        return min(self.length, self.scored) if self.scored < self.num_scores else self.length

    @property
    def unverified(self) -> list[int]:
        """The tokens whose rows are still to be run; the last one is the root of the next tree."""
        return [self.ids[-1], *self.provisional]

    @property
    def output(self) -> list[int]:
        return self.ids[len(self.request.prompt_ids) :]

    @property
    def num_output(self) -> int:
        return len(self.ids) - len(self.request.prompt_ids)

    def rows_needed(self, num_verified: int) -> int:
        """Target rows of the next step, where for want of a stretch so many nodes are verified."""
        draft = 1 + len(self.stretch) if self.stretch else num_verified
        return len(self.provisional) + draft

    def closing(self, path: Items[int]) -> FinishReason | None:
        """Why the grammar lets nothing follow the ids and `path`; None where something may."""
        return None if self.matcher is None else self.matcher.closing(path)

    def append(self, picks: Items[int]) -> list[int]:
        """Take committed tokens up to the first stop token or the length limit; those taken."""
        stop = frozenset(self.request.stop_token_ids)
        taken: list[int] = []
        for token in picks:
            taken.append(token)
            if token in stop:
                self.finish_reason = "stop"
            elif self.num_output + len(taken) >= self.request.max_tokens:
                self.finish_reason = "length"
            if self.finish_reason is not None:
                break
        for lookup in (self.lookups or {}).values():
            lookup.extend(taken)
        self.ids += taken
        self.length = len(self.ids) - 1
        return taken
