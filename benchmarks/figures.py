"""From trials to the figures that are published; each is defined once, here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from .methods import Generation, Phases
from .protocol import Trial
from .settings import BASELINE


class Milliseconds(msgspec.Struct, frozen=True, kw_only=True):
    """`prefill` is per prompt, the others per step. A method that does not tell has only `step`.

    `step` is all of the time, prefill included, over the number of steps.
    """

    prefill: float | None
    draft: float | None
    verify: float | None
    host: float | None
    step: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one method did on a set of prompts.

    `tokens_per_second` is all output tokens over the sum of the prompts' median seconds, end to
    end; `decode_tokens_per_second` leaves prefill out. `tokens_per_second_range` is the slowest and
    the fastest repeat. `tau` counts tokens per step with the bonus token, `tau_0` without, `alpha`
    is the share of output tokens that the drafter proposed (= tau_0 / tau), `nodes` the tokens that
    the target checked per step, root included. `speedup` is over our own engine without a drafter,
    `speedup_over_hf` over transformers. `identical` is the share of prompts whose tokens are
    the baseline's in every repeat; None where there is nothing to compare.
    """

    tokens_per_second: float
    tokens_per_second_range: tuple[float, float]
    decode_tokens_per_second: float | None
    speedup: float | None
    speedup_over_hf: float | None
    tau: float
    tau_0: float
    alpha: float
    nodes: float
    identical: float | None
    ms: Milliseconds
    prompts: int
    output_tokens: int
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over prompts; times are each prompt's median over the repeats."""

    tokens: int
    steps: int
    accepted: int
    nodes: int
    seconds: float
    phases: Phases | None


def figures(trials: Sequence[Trial], name: str, is_comparable: bool = True) -> Figures:
    """The figures of method `name`, relative to the baseline where that was run."""
    own = totals(trials, name)
    speed = own.tokens / own.seconds
    can_compare = is_comparable and BASELINE in trials[0].generations
    prefill = None if own.phases is None else own.phases.prefill / 1e3
    return Figures(
        tokens_per_second=speed,
        tokens_per_second_range=speed_range(trials, name),
        decode_tokens_per_second=None if prefill is None else own.tokens / (own.seconds - prefill),
        speedup=speed_over(trials, speed, BASELINE),
        speedup_over_hf=speed_over(trials, speed, "hf"),
        tau=own.tokens / own.steps,
        tau_0=own.accepted / own.steps,
        alpha=own.accepted / own.tokens,
        nodes=own.nodes / own.steps,
        identical=share_identical(trials, name) if can_compare else None,
        ms=milliseconds(own, len(trials)),
        prompts=len(trials),
        output_tokens=own.tokens,
        steps=own.steps,
        seconds=own.seconds,
    )


def speed_over(trials: Sequence[Trial], speed: float, other: str) -> float | None:
    """`speed` relative to another method's on the same prompts; None where that was not run."""
    if other not in trials[0].generations:
        return None
    base = totals(trials, other)
    return speed * base.seconds / base.tokens


def totals(trials: Iterable[Trial], name: str) -> Totals:
    """Counts are those of the first repeat; the others differ from it only in time."""
    answers = [trial.generations[name] for trial in trials]
    first = [repeats[0] for repeats in answers]
    return Totals(
        tokens=sum(len(one.token_ids) for one in first),
        steps=sum(one.steps for one in first),
        accepted=sum(one.accepted for one in first),
        nodes=sum(one.nodes for one in first),
        seconds=sum(median(one.seconds for one in repeats) for repeats in answers),
        phases=total_phases(answers),
    )


def total_phases(answers: Sequence[Sequence[Generation]]) -> Phases | None:
    """Each phase's median over the repeats, summed over prompts; None if a method does not tell."""
    told = [[one.phases for one in repeats if one.phases is not None] for repeats in answers]
    if not all(told):
        return None

    def total(phase: Callable[[Phases], float]) -> float:
        return sum(median(phase(one) for one in repeats) for repeats in told)

    return Phases(
        prefill=total(lambda one: one.prefill),
        draft=total(lambda one: one.draft),
        verify=total(lambda one: one.verify),
        host=total(lambda one: one.host),
    )


def milliseconds(own: Totals, num_prompts: int) -> Milliseconds:
    step = 1e3 * own.seconds / own.steps
    if own.phases is None:
        return Milliseconds(prefill=None, draft=None, verify=None, host=None, step=step)
    return Milliseconds(
        prefill=own.phases.prefill / num_prompts,
        draft=own.phases.draft / own.steps,
        verify=own.phases.verify / own.steps,
        host=own.phases.host / own.steps,
        step=step,
    )


def speed_range(trials: Sequence[Trial], name: str) -> tuple[float, float]:
    """Tokens per second of the slowest and of the fastest repeat over all prompts."""
    repeats = zip(*(trial.generations[name] for trial in trials), strict=True)
    speeds = [
        sum(len(one.token_ids) for one in answers) / sum(one.seconds for one in answers)
        for answers in repeats
    ]
    return min(speeds), max(speeds)


def share_identical(trials: Sequence[Trial], name: str) -> float:
    """The share of prompts on which every repeat gave the baseline's tokens."""
    hits = sum(
        all(one.token_ids == trial.generations[BASELINE][0].token_ids for one in answers)
        for trial in trials
        for answers in [trial.generations[name]]
    )
    return hits / len(trials)
