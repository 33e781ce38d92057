"""What `falcon bench` was asked to measure, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import msgspec

from engine.config import Dtype
from engine.messages import SamplingParams

METHODS = ("ar", "sps", "pld", "lookahead", "medusa", "eagle", "falcon", "hf")
RIVALS = {  # methods that need a folder beside the target's
    "sps": "a small model of the same vocabulary",
    "medusa": "made by falcon train --method medusa",
    "eagle": "made by falcon train --method eagle",
}
WITH_FOLDER = (*RIVALS, "lookahead")
USUAL_METHODS = ("ar", "falcon", "hf")
GREEDY = SamplingParams(temperature=0.0)
BASELINE = "ar"  # speedup and identity are relative to this one
Device = Literal["auto", "cpu", "cuda"]
Kind = Literal["tree", "chain", "top-k", "served", "unguessed"]


class BenchmarkError(Exception):
    """The benchmark cannot be run as asked; the text is for the person who typed it."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """A drafter's folder and what is done with it.

    "tree" drafts its plan; "chain" the plan's top-1 chain alone; "top-k" ranks candidates by the
    drafter's logits alone, without the noise by which the target samples, as others do; "served"
    drafts as much as is predicted to pay, with prompt lookup beside, as the server does;
    "unguessed" names a token after the other, whatever could be guessed of them.
    """

    folder: Path
    kind: Kind = "tree"


@dataclass(frozen=True, slots=True)
class Settings:
    """One benchmark run. `limit` 0 takes every prompt of a file, `threads` 0 is torch's default."""

    model: Path
    drafter: Path | None
    methods: tuple[str, ...]
    prompts: tuple[Path, ...]
    max_tokens: int = 128
    sampling: SamplingParams = GREEDY
    dtype: Dtype = "auto"
    device: Device = "auto"
    repeats: int = 3
    limit: int = 0
    warm_up: int = 2
    threads: int = 0
    rivals: Mapping[str, Path] = field(default_factory=dict)
    variants: Mapping[str, Drafting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_methods(self.methods, self.drafter, self.rivals)
        for name, least in {"max_tokens": 1, "repeats": 1, "limit": 0, "warm_up": 0}.items():
            _check_at_least(name, getattr(self, name), least)
        _check_at_least("threads", self.threads, 0)
        _check_sampling(self.sampling)
        if not (self.model / "config.json").is_file():
            raise BenchmarkError(f"{self.model} is not a model folder: it has no config.json")
        for file in self.prompts:
            if not file.is_file():
                raise BenchmarkError(f"--prompts {file}: there is no such file")

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that is measured, in order."""
        return (*self.methods, *self.variants)

    def drafter_of(self, name: str) -> Drafting | None:
        """What drafts; None where nothing is loaded for it."""
        folder = self.drafter if name == "falcon" else self.rivals.get(name)
        # Speculative sampling as it was published: a draft model's tokens are not guessed.
        usual: Kind = "unguessed" if name == "sps" else "tree"
        return self.variants.get(name) or (None if folder is None else Drafting(folder, usual))


def shown(place: Path) -> str:
    """A path for readers: from here, where that is shorter."""
    try:
        return str(place.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(place)


def demo_pair() -> tuple[Path, Path]:
    """The embedded target and its drafter, beside the packages."""
    demo = Path(__file__).resolve().parent.parent / "models" / "demo"
    return demo / "target", demo / "drafter"


def demo_rivals() -> dict[str, Path]:
    """The embedded drafters of other methods."""
    folders = (demo_pair()[0].parent / "rivals").glob("*/config.json")
    return {file.parent.name: file.parent for file in folders}


def parse_rivals(entries: Sequence[str]) -> dict[str, Path]:
    """Folders by method, from METHOD=DIR. Raises `BenchmarkError`."""
    found: dict[str, Path] = {}
    for entry in entries:
        method, _, folder = entry.partition("=")
        if method not in WITH_FOLDER or not folder or method in found:
            raise BenchmarkError(
                f"--rival {entry!r}: expected METHOD=DIR, each of {','.join(WITH_FOLDER)} once"
            )
        if not Path(folder, "config.json").is_file():
            raise BenchmarkError(f"--rival {entry}: there is no config.json in that folder")
        found[method] = Path(folder)
    return found


def parse_variants(entries: Sequence[str]) -> dict[str, Drafting]:
    """From NAME=DIR or NAME=DIR:KIND. Raises `BenchmarkError`."""
    found: dict[str, Drafting] = {}
    for entry in entries:
        name, _, place = entry.partition("=")
        kinds: dict[str, Kind] = {f":{kind}": kind for kind in get_args(Kind) if kind != "tree"}
        end = next((end for end in kinds if place.endswith(end)), "")
        folder = Path(place.removesuffix(end))
        if not name or name in (*METHODS, *found) or not (folder / "config.json").is_file():
            raise BenchmarkError(
                f"--variant {entry!r}: expected NAME=DIR, or {', '.join(kinds)} behind it, each "
                "name once, and a drafter in DIR"
            )
        found[name] = Drafting(folder, kinds.get(end, "tree"))
    return found


def choose_pair(model: Path | None, drafter: Path | None) -> tuple[Path, Path | None]:
    """What to load: as asked, or the embedded pair when nothing was asked for."""
    if model is not None:
        return model, drafter
    if drafter is not None:
        raise BenchmarkError("--drafter needs --model: a drafter fits one model only")
    target, own = demo_pair()
    if not (target / "config.json").is_file():
        raise BenchmarkError(f"the embedded demo is missing at {target}: name one with --model")
    return target, own


def settings_from(
    args: argparse.Namespace, rivals: Sequence[str] = (), variants: Sequence[str] = ()
) -> Settings:
    """Check what was typed. Raises `BenchmarkError`."""
    model, drafter = choose_pair(args.model, args.drafter)
    sampling = SamplingParams(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        seed=args.seed,
    )
    if args.plot is not None and (args.plot.suffix != ".png" or not args.plot.parent.is_dir()):
        raise BenchmarkError(f"--plot {args.plot} must be a .png file in an existing folder")
    return Settings(
        model=model,
        drafter=drafter,
        methods=tuple(args.methods.split(",")),
        prompts=tuple(args.prompts),
        max_tokens=args.max_tokens,
        sampling=sampling,
        dtype=args.dtype,
        device=args.device,
        repeats=args.repeats,
        limit=args.limit,
        warm_up=args.warm_up,
        threads=args.threads,
        rivals=(demo_rivals() if args.model is None else {}) | parse_rivals(rivals),
        variants=parse_variants(variants),
    )


def at_temperatures(settings: Settings, text: str) -> list[Settings]:
    """The same at other temperatures, for what drafting with the sampling noise is about.

    Raises `BenchmarkError`.
    """
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        raise BenchmarkError(f"--temperatures {text!r}: expected numbers, as in 0.7,1") from None
    methods = tuple(name for name in settings.methods if name in ("ar", "eagle", "falcon"))
    kinds = "top-k", "served"
    variants = {name: one for name, one in settings.variants.items() if one.kind in kinds}
    return [
        replace(
            settings,
            methods=methods,
            variants=variants,
            sampling=msgspec.structs.replace(settings.sampling, temperature=temperature),
        )
        for temperature in found
    ]


def _check_methods(
    methods: tuple[str, ...], drafter: Path | None, rivals: Mapping[str, Path]
) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise BenchmarkError(f"--methods: unknown {unknown[0]!r}, choose from {','.join(METHODS)}")
    if len(set(methods)) != len(methods):
        raise BenchmarkError(f"--methods {','.join(methods)} names a method twice")
    if "falcon" in methods and drafter is None:
        raise BenchmarkError("--methods: falcon needs --drafter; without one, try ar,pld,hf")
    for name in methods:
        if name in RIVALS and name not in rivals:
            raise BenchmarkError(f"--methods: {name} needs --rival {name}=DIR, {RIVALS[name]}")


def _check_sampling(sampling: SamplingParams) -> None:
    claims = {
        f"--temperature {sampling.temperature} must be from 0 to 2": 0 <= sampling.temperature <= 2,
        f"--top-p {sampling.top_p} must be above 0, at most 1": 0 < sampling.top_p <= 1,
        f"--min-p {sampling.min_p} must be from 0 to 1": 0 <= sampling.min_p <= 1,
        f"--top-k {sampling.top_k} must not be negative": sampling.top_k >= 0,
        f"--seed {sampling.seed} must be from 0 to 2**64 - 1": 0 <= sampling.seed < 2**64,
    }
    for complaint, holds in claims.items():
        if not holds:
            raise BenchmarkError(complaint)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise BenchmarkError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
