"""`falcon bench`: the speed of decoding methods side by side, on the same weights and prompts.

    falcon bench [--model DIR --drafter DIR] --methods ar,falcon,hf --prompts FILE [FILE...]

A table goes to stdout, and as its last line one JSON document; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .settings import USUAL_METHODS, BenchmarkError, at_temperatures, settings_from

USER_ERROR = 2
# What `settings_from` reads, for benchmarks that have no such options.
NO_PROTOCOL = {
    "methods": "ar",
    "warm_up": 0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "plot": None,
}
OWN_PROMPTS = Path(__file__).resolve().parent / "prompts.jsonl"
Number = TypeVar("Number", int, float)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `falcon bench`."""
    add_model_arguments(parser)
    parser.add_argument(
        "--methods",
        default=",".join(USUAL_METHODS),
        help="ar: our engine, one token a step; falcon: with the drafter; pld: prompt lookup; "
        "lookahead: n-grams of the model's own guesses; sps: a smaller model drafts; medusa, "
        "eagle: heads of these kinds; hf: transformers' model.generate (default: %(default)s)",
    )
    parser.add_argument(
        "--rival",
        action="append",
        default=[],
        metavar="METHOD=DIR",
        help="what drafts for sps, medusa, eagle or lookahead (default: the embedded demo's)",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=DIR[:chain|:top-k|:served|:unguessed]",
        help="another drafter, under a name; :chain drafts its top-1 chain only, :top-k ranks "
        "candidates without the sampling noise, :served drafts as falcon serve does, :unguessed "
        "names a token after the other",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="also write the paper's tables and pictures there",
    )
    parser.add_argument(
        "--temperatures",
        metavar="T,T",
        help="with --report: also measure ar, eagle, falcon, :top-k and :served variants at these",
    )
    add_protocol_arguments(parser)


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """How often to measure, how to sample, where to draw."""
    add = parser.add_argument
    add("--repeats", type=int, default=3, metavar="N", help="runs of each prompt (default: 3)")
    add("--warm-up", type=int, default=2, metavar="N", help="prompts run before the clock starts")
    add("--top-p", type=float, default=1.0, metavar="P")
    add("--top-k", type=int, default=0, metavar="K")
    add("--min-p", type=float, default=0.0, metavar="P")
    add("--plot", type=Path, metavar="FILE.png", help="also draw a picture")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What every measurement of an engine needs: models, prompts, length, device."""
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="model folder (default: the embedded demo)")
    add("--drafter", type=Path, metavar="DIR", help="drafter folder for this model")
    add_prompt_arguments(parser)
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (0: torch's default)")


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What is asked, of an engine or of a server."""
    add = parser.add_argument
    add(
        "--prompts",
        type=Path,
        nargs="+",
        default=[OWN_PROMPTS],
        metavar="FILE",
        help='JSON lines with "messages", "turns", "prompt" or "question" (default: our own)',
    )
    add("--limit", type=int, default=0, metavar="N", help="prompts per file (0: all)")
    add("--max-tokens", type=int, default=128, metavar="N", help="(default: %(default)s)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (the default)")
    add("--seed", type=int, default=0, metavar="N")


def parse_numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Numbers above 0, each once, as in "1,2,4". Raises `BenchmarkError`."""
    try:
        found = tuple(kind(word) for word in text.split(","))
    except ValueError:
        found = ()
    is_sound = all(0 < number < math.inf for number in found) and len(set(found)) == len(found)
    if not found or not is_sound:
        kinds = "whole numbers" if kind is int else "numbers"
        raise BenchmarkError(f"{option} {text!r}: expected {kinds} above 0, each once, as in 1,2,4")
    return found


def refuse(program: str, error: BenchmarkError) -> int:
    """Say in one line why it cannot be done as asked; the exit status for that."""
    print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
    return USER_ERROR


def run(args: argparse.Namespace) -> int:
    """Measure and report; 2 with one line on stderr when it cannot be done as asked."""
    try:
        settings = settings_from(args, args.rival, args.variant)
        further = [] if args.temperatures is None else at_temperatures(settings, args.temperatures)
        if args.report is None and further:
            raise BenchmarkError("--temperatures needs --report")
        if args.report is not None and not {"ar", "falcon"} <= set(settings.methods):
            raise BenchmarkError("--report needs ar and falcon among the --methods")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
        from .comparison import bench  # imports torch, which takes seconds

        result, *others = [bench(one) for one in (settings, *further)]
    except BenchmarkError as error:
        return refuse("falcon bench", error)
    from .report import document, show

    for one in (result, *others):
        show(one)
    print(document(result), flush=True)
    if args.report is not None:
        from .paper import write_report

        write_report([result, *others], shlex.join(["falcon", *sys.argv[1:]]), args.report)
    if args.plot is not None:
        from .picture import plot

        plot(result, args.plot)
    return 0
