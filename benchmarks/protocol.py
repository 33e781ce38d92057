"""The measurement: every method answers every prompt, interleaved, and nothing else happens.

What this guards against: a method that runs while the machine is slow (interleaving, rotation of
the order, medians over repeats), first-call costs (warm-up), the garbage collector, output to a
terminal and progress threads (nothing is drawn while the clock runs).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .methods import Generation, Method
from .prompts import Prompt

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Trial:
    """One prompt's answers: every method's, one for each repeat."""

    source: str
    generations: dict[str, tuple[Generation, ...]]


def warm_up(
    methods: Sequence[Method], prompts: Sequence[Prompt], advance: Callable[[], None]
) -> None:
    """Answer `prompts` with every method and forget the times."""
    for prompt in prompts:
        for method in methods:
            method.generate(prompt.ids)
        advance()


def measure(
    methods: Sequence[Method],
    prompts: Sequence[Prompt],
    repeats: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Time all methods on each prompt before the next; `advance` is called between prompts."""
    trials = []
    for number, prompt in enumerate(prompts):
        answers: dict[str, list[Generation]] = {method.name: [] for method in methods}
        with garbage_collection_off():
            for repeat in range(repeats):
                for method in rotated(methods, number + repeat):
                    answers[method.name].append(method.generate(prompt.ids))
        trials.append(Trial(prompt.source, {name: tuple(own) for name, own in answers.items()}))
        advance()
    return trials


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    """The items in turn, another one first each time."""
    first = by % len(items)
    return [*items[first:], *items[:first]]


@contextlib.contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Collect now, then not until the end."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
