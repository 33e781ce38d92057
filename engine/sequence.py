"""One running request: its tokens, its slot, and what is still to be fed to the drafter."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from .messages import FinishReason, Submit


@dataclass(slots=True)
class Sequence:
    """A request in a slot. `ids` are prompt and output, all of them final.

    The target's keys and values of all ids but the last are committed. `provisional` tokens follow
    the ids where rows off the top-1 chain picked them; the next step verifies them once more.
    """

    request: Submit
    slot: int
    ids: list[int] = field(default_factory=list)
    provisional: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.ids = [*self.request.prompt_ids, *self.request.output_ids]

    @property
    def length(self) -> int:
        """Committed KV columns: every final token but the last."""
        return len(self.ids) - 1

    @property
    def unverified(self) -> list[int]:
        """The tokens whose rows are still to be run; the last one is the root of the next tree."""
        return [self.ids[-1], *self.provisional]

    @property
    def num_output(self) -> int:
        return len(self.ids) - len(self.request.prompt_ids)

    def append(self, picks: Items[int]) -> list[int]:
        """Take tokens up to the first stop token or the length limit; those taken."""
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
        self.ids += taken
        return taken
