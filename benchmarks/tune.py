"""`falcon tune`: the decoding trees that are fastest for a drafter on this device.

    falcon tune --model DIR --drafter DIR --prompts FILE [FILE...]

Writes them into the drafter's `plan.json`, which `falcon serve` loads. Tune on other prompts than
those that are reported, and on a machine that does nothing else. A table goes to stdout, and as its
last line one JSON document; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import os

from engine.messages import SamplingParams

from .command import add_model_arguments, parse_numbers, refuse
from .settings import BenchmarkError, Settings, choose_pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `falcon tune`."""
    add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--batches",
        default="1,2,4,8",
        metavar="N,N",
        help="how many sequences decode together: a tree for each (default: %(default)s)",
    )
    keep = "keep the trees of plan.json beside the new ones, as for another --temperature"
    add("--keep", action="store_true", help=keep)
    unguessed = "tokens are named one after the other, as falcon bench has sps"
    add("--unguessed", action="store_true", help=unguessed)
    add("--dry-run", action="store_true", help="leave the drafter's plan.json as it is")


def settings_from(args: argparse.Namespace) -> Settings:
    """Check what was typed. Raises `BenchmarkError`."""
    model, drafter = choose_pair(args.model, args.drafter)
    if drafter is None:
        raise BenchmarkError("--drafter is needed: its trees are tuned")
    if not args.dry_run and drafter.is_dir() and not os.access(drafter, os.W_OK):
        raise BenchmarkError(f"{drafter} cannot be written; --dry-run only measures")
    return Settings(
        model=model,
        drafter=drafter,
        methods=("falcon",),
        prompts=tuple(args.prompts),
        max_tokens=args.max_tokens,
        sampling=SamplingParams(temperature=args.temperature, seed=args.seed),
        dtype=args.dtype,
        device=args.device,
        limit=args.limit,
        threads=args.threads,
    )


def run(args: argparse.Namespace) -> int:
    """Tune and report; 2 with one line on stderr when it cannot be done as asked."""
    try:
        settings = settings_from(args)
        batches = parse_numbers("--batches", args.batches, int)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
        from .tuning import tune  # imports torch, which takes seconds

        tuning = tune(settings, batches, takes_guesses=not args.unguessed)
    except BenchmarkError as error:
        return refuse("falcon tune", error)
    from .tune_report import document, show

    show(tuning)
    if not args.dry_run:
        from drafter.tuned import has_plan, load_trees, save_trees

        assert settings.drafter is not None
        kept = load_trees(settings.drafter) if args.keep and has_plan(settings.drafter) else []
        known = {(one.tree, one.batch, one.dynamic) for one in kept}
        new = [one for one in tuning.trees if (one.tree, one.batch, one.dynamic) not in known]
        save_trees([*kept, *new], settings.drafter)
        print(f"wrote {settings.drafter}/plan.json")
    print(document(tuning, settings), flush=True)
    return 0
