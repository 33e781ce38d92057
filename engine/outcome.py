"""What a step comes to for each sequence: from the walk down its tree to what a user is told."""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from math import ceil

from tree.topology import RankPath, Tree

from .messages import FinishReason, RequestOutput, Source, StepTrace, TokenLogprobs
from .sequence import Sequence


@dataclass(slots=True)
class Walk:
    """One sequence's way down its verified tree, whose nodes hold `tokens`.

    `picks` are the target's at each visited row. `at` is the node it has come to, and that node's
    twins: a draft may hold a path more than once, each with other tokens below.
    """

    tree: Tree
    tokens: list[int]
    picks: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=lambda: [0])

    @property
    def nodes(self) -> list[int]:
        """Those followed below the first row."""
        return list(self.tree.path_to(self.at[0]))

    def follow(self, children: Items[Items[int]]) -> bool:
        """Go on to the children, by node, that carry the newest pick; False where none does."""
        carriers = [
            n for node in self.at for n in children[node] if self.tokens[n] == self.picks[-1]
        ]
        self.at = carriers or self.at
        return bool(carriers)

    def run(self, picks: Items[int], children: Items[Items[int]]) -> None:
        """Go all the way by what the target picks at each row."""
        is_done = False
        while not is_done:
            self.picks.append(picks[self.at[0]])
            is_done = not self.follow(children)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a walk came to: `picks` are final.

    `provisional` are those of rows off the top-1 chain, where a row's last bits may differ from
    plain decoding's: the next step verifies them again, on the chain. `sources` are those of both.
    The tree's nodes up to `root` were provisional themselves; `drafted` are the accepted paths of
    what was drafted below it. `stretch` is whose stretch of a known text that was,
    None for the drafter's tree. Without `is_sound` a visited row was not finite, and nothing of it
    may be used. `logprobs` are those of `picks`, for a request that asks. `closing` is why the
    grammar lets nothing follow them.
    """

    walk: Walk
    picks: list[int]
    provisional: list[int]
    sources: list[Source]
    root: int
    drafted: list[RankPath]
    stretch: Source | None
    is_sound: bool
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    closing: FinishReason | None = None

    @property
    def num_drafted(self) -> int:
        """Nodes that were verified below the root."""
        return self.walk.tree.num_nodes - 1 - self.root


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step gave each sequence, the drafter's passes, and how long the models took."""

    accepted: list[Accepted]
    passes: float
    draft_ms: float
    verify_ms: float


def sources(sequence: Sequence, nodes: list[int]) -> list[Source]:
    """Where the target's picks on a path came from: its own, the last one, is no node."""
    own: Source = sequence.stretch_source if sequence.stretch else "drafted"
    known, before = len(sequence.provisional), sequence.provisional_sources
    return [*(before[node - 1] if node <= known else own for node in nodes), "bonus"]


def request_output(
    sequence: Sequence, path: Accepted, taken: list[int], step: StepOutput
) -> RequestOutput:
    """What a step gave a request, of whose final picks it took some."""
    taken_from = path.sources[: len(taken)]
    predicted = path.num_drafted if path.stretch == "predicted" else 0
    return RequestOutput(
        request_id=sequence.request.request_id,
        token_ids=taken,
        finish_reason=sequence.finish_reason,
        drafted=path.num_drafted,
        accepted=len(taken) - taken_from.count("bonus"),
        cached_tokens=sequence.cached_tokens,
        logprobs=path.logprobs[: len(taken)],
        sources=taken_from,
        depth=len(path.drafted),
        predicted=predicted,
        rejected_predicted=predicted - len(path.drafted) if predicted else 0,
        trace=_trace(path, step) if sequence.request.trace else None,
        slot_ms=1e3 * (time.perf_counter() - sequence.admitted),
    )


def prompt_output(sequence: Sequence, scores: Items[TokenLogprobs] = ()) -> RequestOutput:
    """What a step says of a request to which it gives no token."""
    return RequestOutput(
        request_id=sequence.request.request_id,
        token_ids=[],
        finish_reason=sequence.finish_reason,
        drafted=0,
        accepted=0,
        cached_tokens=sequence.cached_tokens,
        prompt_logprobs=[*scores],
    )


def _trace(path: Accepted, step: StepOutput) -> StepTrace:
    tree = path.walk.tree
    return StepTrace(
        tokens=path.walk.tokens[: tree.num_nodes],
        parents=list(tree.parents),
        root=path.root,
        path=path.walk.nodes,
        provisional=len(path.provisional),
        passes=0 if path.stretch else ceil(step.passes),
        draft_ms=step.draft_ms,
        verify_ms=step.verify_ms,
    )
