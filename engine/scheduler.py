"""Who runs in which slot, and what a step computes: pure bookkeeping, no tensors.

    waiting ── admit ──> prefilling ── prompt done ──> running ── release ──> slot free, cached

A free slot keeps the tokens whose keys and values it holds: a new request takes over, or copies,
the longest prefix that any slot has of its prompt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .messages import Submit
from .sequence import Sequence


@dataclass(slots=True)
class Slot:
    """One row of the cache. `cached` are the tokens it holds while no sequence runs in it."""

    index: int
    sequence: Sequence | None = None
    cached: list[int] = field(default_factory=list)
    released: int = 0  # when it became free, by the scheduler's own count

    @property
    def tokens(self) -> list[int]:
        """Tokens whose keys and values are in columns 0, 1, ..."""
        return self.cached if self.sequence is None else self.sequence.ids[: self.sequence.length]


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that got a slot; columns before `sequence.length` are to come from `source`."""

    sequence: Sequence
    source: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens `start` to `stop` of a sequence, to be prefilled in this step.

    Where the prompt is scored, it may start within what is cached.
    """

    sequence: Sequence
    start: int
    stop: int


class Scheduler:
    """Oldest first, but a key with fewer requests in slots goes before one with more."""

    def __init__(self, num_slots: int) -> None:
        self.slots = [Slot(index) for index in range(num_slots)]
        self.waiting: dict[str, deque[tuple[int, Submit]]] = {}
        self.sequences: dict[str, Sequence] = {}  # in slots, oldest first
        self._clock = 0

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.sequences)

    @property
    def running(self) -> list[Sequence]:
        """Sequences that decode: their prompt is committed."""
        return [s for s in self.sequences.values() if s.is_prefilled]

    def submit(self, request: Submit) -> None:
        """Queue a request. Its id must not be in use."""
        self.waiting.setdefault(request.key, deque()).append((self._tick(), request))

    def abort(self, request_id: str) -> None:
        """Forget a request wherever it is; unknown ids are ignored."""
        if (sequence := self.sequences.get(request_id)) is not None:
            self.release(sequence)
            return
        for key, queue in list(self.waiting.items()):
            kept = deque(entry for entry in queue if entry[1].request_id != request_id)
            self._set_queue(key, kept)

    def admit(self) -> list[Admission]:
        """Give free slots to waiting requests."""
        admitted = []
        while self.waiting and any(slot.sequence is None for slot in self.slots):
            admitted.append(self._place(self._next_request()))
        return admitted

    def chunks(self, budget: int) -> list[Chunk]:
        """At most `budget` prompt tokens to prefill now, of the oldest prompts first."""
        chunks = []
        for sequence in self.sequences.values():
            if budget > 0 and not sequence.is_prefilled:
                start = sequence.next_row
                stop = min(start + budget, len(sequence.ids) - 1)
                chunks.append(Chunk(sequence, start, stop))
                budget -= stop - start
        return chunks

    def release(self, sequence: Sequence, is_sound: bool = True) -> None:
        """Free the sequence's slot; unless `is_sound`, what the slot holds is not used again."""
        del self.sequences[sequence.request.request_id]
        slot = self.slots[sequence.slot]
        slot.cached = slot.tokens if is_sound else []
        slot.sequence = None
        slot.released = self._tick()

    def forget(self) -> None:
        """Use nothing again of what free slots hold."""
        for slot in self.slots:
            slot.cached = []

    def _next_request(self) -> Submit:
        held: dict[str, int] = {}
        for sequence in self.sequences.values():
            held[sequence.request.key] = held.get(sequence.request.key, 0) + 1
        key = min(self.waiting, key=lambda key: (held.get(key, 0), self.waiting[key][0][0]))
        _, request = self.waiting[key].popleft()
        self._set_queue(key, self.waiting[key])
        return request

    def _set_queue(self, key: str, queue: deque[tuple[int, Submit]]) -> None:
        if queue:
            self.waiting[key] = queue
        else:
            del self.waiting[key]

    def _place(self, request: Submit) -> Admission:
        """The longest cached prefix decides the source.

        Its own slot is taken where it is free and the prefix is most of what it holds, so that a
        shared beginning does not cost another conversation its cache; else the slot that has been
        free for longest.
        """
        sequence = Sequence(request, 0)
        prompt = sequence.ids[:-1]
        shared = {slot.index: _common(slot.tokens, prompt) for slot in self.slots}
        source = max(self.slots, key=lambda slot: (shared[slot.index], -slot.released))
        free = [slot for slot in self.slots if slot.sequence is None]
        target = min(free, key=lambda slot: (bool(slot.cached), slot.released))
        if source.sequence is None and 2 * shared[source.index] >= max(1, len(source.cached)):
            target = source
        sequence.slot = target.index
        sequence.length = sequence.cached_tokens = shared[source.index]
        target.sequence, target.cached = sequence, []
        self.sequences[request.request_id] = sequence
        return Admission(sequence, source.index)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _common(tokens: list[int], prompt: list[int]) -> int:
    """Length of the common prefix, by bisection on slices."""
    low, high = 0, min(len(tokens), len(prompt))
    while low < high:
        middle = (low + high + 1) // 2
        if tokens[low:middle] == prompt[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
