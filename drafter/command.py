"""`falcon train`: make a drafter for a Hugging Face decoder-only model.

    falcon train --target DIR --data FILE [FILE...] --out DIR [--regenerate]

This file must import no torch at its top: `falcon --help` reads it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from .config import DrafterError

USER_ERROR = 2
METHODS = ("falcon", "eagle", "medusa")
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, save for those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False
        return action.help if says_nothing else super()._get_help_string(action)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `falcon train`."""
    parser.formatter_class = _HelpFormatter
    add = parser.add_argument
    add("--target", type=Path, required=True, metavar="DIR", help="Hugging Face model folder")
    add("--out", type=Path, required=True, metavar="DIR", help="where the drafter is written")
    add("--resume", action="store_true", help="go on where the run in --out stopped")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--compile", action="store_true", help="compile the target's layers")
    stored = "keep the target's features of all rows here, for this and other runs on them"
    add("--features", type=Path, metavar="FILE", help=stored)
    _add_data_arguments(parser)
    _add_regenerate_arguments(parser)
    _add_drafter_arguments(parser)
    _add_length_arguments(parser)
    _add_training_arguments(parser)
    _add_record_arguments(parser)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    rows = 'JSON lines: {"messages": [...]} or {"prompt": "...", "response": "..."}'
    add("--data", type=Path, nargs="+", required=True, metavar="FILE", help=rows)
    add("--heldout", type=Path, nargs="+", metavar="FILE", help="rows only to measure on")
    share = "without --heldout: share of the rows kept apart to measure on, at most 200 rows"
    add("--heldout-share", type=float, default=0.02, metavar="X", help=share)
    add(
        "--max-length", type=int, default=1024, metavar="N", help="tokens of a row, the rest is cut"
    )
    add(
        "--batch-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="tokens of a batch, with padding",
    )


def _add_regenerate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("answers written anew by the target").add_argument
    add("--regenerate", action="store_true", help="replace every row's last answer before training")
    add("--regenerate-tokens", type=int, default=256, metavar="N", help="longest new answer")
    add("--regenerate-temperature", type=float, default=0.0, metavar="T", help="0 is greedy")
    limit = "only so many rows, drawn at random (all); other rows are then not trained on"
    add("--regenerate-limit", type=int, metavar="N", help=limit)
    add("--regenerate-batch", type=int, default=64, metavar="N", help="answers written at once")
    add("--keep-original", action="store_true", help="train on the rows as they were as well")


def _add_drafter_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("drafter").add_argument
    methods = (
        "falcon; eagle: a Falcon head with a linear mixer and blocks of one; medusa: K heads on "
        "the target's features"
    )
    add("--method", choices=METHODS, default="falcon", help=methods)
    size = "tokens drafted in one pass (falcon: 2, of 1 to 4; medusa: 5, of 1 to 8)"
    add("--block-size", type=int, metavar="K", help=size)
    add("--num-layers", type=int, default=1, metavar="N", help="attention layers, or a head's")
    mixer = "what runs along the sequence (falcon: lstm)"
    add("--mixer", choices=("lstm", "linear"), help=mixer)
    coupled = "each slot of a block is told what was named before it (falcon: on)"
    add("--coupled", action=argparse.BooleanOptionalAction, help=coupled)
    add("--num-heads", type=int, metavar="N", help="attention heads (hidden size / 64)")
    add("--intermediate-size", type=int, metavar="N", help="width of the MLP (4 * hidden size)")
    init = "start from this drafter's weights; coupled slots with --mixer linear from an eagle's"
    add("--init", type=Path, metavar="DIR", help=init)
    add("--window", type=int, metavar="N", help="positions that attention sees (all)")


def _add_length_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("length of the run")
    add = group.add_mutually_exclusive_group().add_argument
    add("--epochs", type=int, default=3, metavar="N", help="times that every row is read")
    add("--steps", type=int, metavar="N", help="batches")
    add("--minutes", type=float, metavar="M", help="wall time, for machines of unknown speed")


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--learning-rate", type=float, default=3e-4, metavar="X", help="peak; warm-up, then cosine")
    add("--weight-decay", type=float, default=0.01, metavar="X", help="of AdamW")
    add("--glance", type=float, default=0.4, metavar="X", help="CSGD's first lambda; 0: no CSGD")
    add("--noise", type=float, default=0.1, metavar="X", help="half-width of the feature noise")
    add("--feature-weight", type=float, default=1.0, metavar="X", help="of the feature loss")
    add("--token-weight", type=float, default=0.1, metavar="X", help="of the token loss")
    add("--seed", type=int, default=0, metavar="N", help="decides all that is random")


def _add_record_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("record, every so many steps").add_argument
    add("--save-every", type=int, default=500, metavar="N", help="checkpoint")
    add("--eval-every", type=int, default=500, metavar="N", help="acceptance on held-out rows")
    add("--log-every", type=int, default=10, metavar="N", help="mean losses")


def run(args: argparse.Namespace) -> int:
    """Train, and return the exit code: 0 done, 2 a mistake of the user, 130 interrupted."""
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.getLogger(__package__).setLevel(logging.INFO)
    try:
        from .run import train_drafter  # imports torch

        is_complete = train_drafter(args, console)
    except DrafterError as error:
        print(f"falcon train: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        is_complete = False
    if not is_complete:
        print("falcon train: interrupted; the same command with --resume goes on", file=sys.stderr)
    return 0 if is_complete else INTERRUPTED
