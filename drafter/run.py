"""From the options of `falcon train` to a finished run."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .checkpoint import inherit, target_fingerprint
from .config import DrafterConfig, DrafterError, HeadConfig, MedusaConfig
from .data import Example, digest, read_rows, split_heldout, tokenize_rows
from .features import StoredFeatures
from .memory import keep_freed_memory
from .progress import RunIdentity, holds_run
from .regenerate import RegenerateSettings, regenerate
from .settings import TrainingSettings
from .target import FrozenTarget, load_frozen_target
from .training import Trainer

log = logging.getLogger(__name__)

MOST_HELDOUT = 200  # rows; more would cost time and hardly change the figures


@dataclass(frozen=True, slots=True)
class Examples:
    """What is learned from, and what is only measured on."""

    training: list[Example]
    heldout: list[Example]


def train_drafter(args: argparse.Namespace, console: Console) -> bool:
    """Load, prepare, train; False when interrupted. Raises `DrafterError` for a user's mistake."""
    keep_freed_memory()
    settings, answers = training_settings(args), regenerate_settings(args)
    check_out(args.out, args.resume)
    target = load_frozen_target(args.target, choose_device(args.device), args.compile)
    check_length(target, args.max_length, args.batch_tokens)
    config = drafter_config(args, target)
    examples = load_examples(args, target)
    if args.regenerate:
        examples = regenerate_examples(args, target, examples, answers, console)
    identity = RunIdentity(
        settings=settings,
        drafter=config,
        data=digest(examples.training),
        heldout=digest(examples.heldout),
        init=target_fingerprint(args.init) if args.init else "",
        stored_features=args.features is not None,
    )
    stored = stored_features(args, target, examples.training, console)
    trainer = Trainer(target, examples.training, examples.heldout, identity, args.out, stored)
    if args.init:
        try:
            inherit(trainer.head, args.init)
        except DrafterError as error:
            raise DrafterError(f"--init: {error}") from error
    if args.resume and not trainer.resume():
        log.info("no checkpoint in %s yet: starting from the beginning", args.out)
    describe(trainer, examples)
    with stopping_signals(trainer), training_bar(trainer, console):
        return trainer.train()


def training_settings(args: argparse.Namespace) -> TrainingSettings:
    """The options that decide how the run goes."""
    names = set(TrainingSettings.__struct_fields__) & set(vars(args))
    return TrainingSettings(**{name: getattr(args, name) for name in names})


def regenerate_settings(args: argparse.Namespace) -> RegenerateSettings:
    """The options for new answers."""
    return RegenerateSettings(
        max_new_tokens=args.regenerate_tokens,
        temperature=args.regenerate_temperature,
        limit=args.regenerate_limit,
        batch_size=args.regenerate_batch,
        max_length=args.max_length,
        seed=args.seed,
    )


def drafter_config(args: argparse.Namespace, target: FrozenTarget) -> HeadConfig:
    """The drafter's kind and sizes; raises `DrafterError` for sizes that it does not have."""
    common = {
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "fingerprint": target.fingerprint,
        "num_layers": args.num_layers,
    }
    block_size = {} if args.block_size is None else {"block_size": args.block_size}
    if args.method == "medusa":
        refuse_sizes(args, "mixer", "num_heads", "intermediate_size", "window", "coupled")
        return MedusaConfig(**common, **block_size)
    attention = attention_sizes(args, target)
    if args.method == "eagle":
        refuse_sizes(args, "mixer", "block_size", "coupled")
        return DrafterConfig(block_size=1, mixer="linear", **common, **attention)
    return DrafterConfig(
        mixer=args.mixer or "lstm",
        coupled=args.block_size != 1 if args.coupled is None else args.coupled,
        **common,
        **attention,
        **block_size,
    )


def attention_sizes(args: argparse.Namespace, target: FrozenTarget) -> dict[str, Any]:
    """Without --num-heads, heads of 64 dimensions or the next that divide."""
    hidden = target.hidden_size
    fitting = (n for n in range(max(hidden // 64, 1), 0, -1) if hidden % (2 * n) == 0)
    return {
        "num_heads": next(fitting, 1) if args.num_heads is None else args.num_heads,
        "intermediate_size": args.intermediate_size or 0,
        "window": args.window,
    }


def refuse_sizes(args: argparse.Namespace, *names: str) -> None:
    """Raise `DrafterError` where an option is given that the method does not have."""
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]
    if given:
        raise DrafterError(f"--method {args.method} takes no {', '.join(given)}")


def check_out(out: Path, is_resuming: bool) -> None:
    """Refuse to write over another run."""
    if out.exists() and not out.is_dir():
        raise DrafterError(f"--out {out} is not a folder")
    if holds_run(out) and not is_resuming:
        raise DrafterError(f"--out {out} holds another run; add --resume or choose another folder")
    out.mkdir(parents=True, exist_ok=True)


def check_length(target: FrozenTarget, max_length: int, batch_tokens: int) -> None:
    """Refuse rows that the target or a batch cannot take."""
    longest = getattr(target.model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and max_length > longest:
        raise DrafterError(f"--max-length {max_length} is over the target's context of {longest}")
    if not 8 <= max_length <= batch_tokens:
        raise DrafterError(f"--max-length must be 8 to --batch-tokens {batch_tokens}")


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DrafterError(f"--device {name} cannot be used: {error}") from error
    return device


def load_examples(args: argparse.Namespace, target: FrozenTarget) -> Examples:
    """Read and tokenise the files; a share is kept apart unless --heldout names rows."""
    if not 0 <= args.heldout_share < 1:
        raise DrafterError(f"--heldout-share must be 0 to under 1, not {args.heldout_share}")

    def load(files: list[Path]) -> list[Example]:
        return tokenize_rows(read_rows(files), target.tokenizer, target.end_ids, args.max_length)

    training = load(args.data)
    if args.heldout is None:
        training, heldout = split_heldout(training, args.heldout_share, MOST_HELDOUT, args.seed)
    else:
        _, heldout = split_heldout(load(args.heldout), 1.0, MOST_HELDOUT, args.seed)
    if not training:
        raise DrafterError(f"no usable row in {', '.join(map(str, args.data))}")
    return Examples(training, heldout)


def regenerate_examples(
    args: argparse.Namespace,
    target: FrozenTarget,
    examples: Examples,
    settings: RegenerateSettings,
    console: Console,
) -> Examples:
    """Both parts with the target's own answers, plus the originals where they are to be kept."""
    training, heldout = (
        _regenerate_part(args.out / f"{name}.jsonl", part, target, settings, console)
        for name, part in (
            ("regenerated", examples.training),
            ("regenerated-heldout", examples.heldout),
        )
    )
    if not training:
        raise DrafterError("no row leaves room for an answer; raise --max-length")
    return Examples(training + examples.training if args.keep_original else training, heldout)


def stored_features(
    args: argparse.Namespace, target: FrozenTarget, training: list[Example], console: Console
) -> StoredFeatures | None:
    """What --features names, computed where it is not there; None without the option."""
    if args.features is None:
        return None
    with progress_bar(console) as bar:
        task = bar.add_task("the target's features", total=1.0)

        def show(share: float) -> None:
            bar.update(task, completed=share)

        return StoredFeatures(args.features, target, training, args.batch_tokens, show)


def _regenerate_part(
    file: Path,
    part: list[Example],
    target: FrozenTarget,
    settings: RegenerateSettings,
    console: Console,
) -> list[Example]:
    with progress_bar(console) as bar:
        task = bar.add_task(f"answers for {file.name}", total=1.0)

        def show(share: float) -> None:
            bar.update(task, completed=share)

        return regenerate(target, part, settings, file, digest(part), show)


def describe(trainer: Trainer, examples: Examples) -> None:
    """Log what is about to happen."""
    tokens = sum(map(len, examples.training))
    weights = sum(weight.numel() for weight in trainer.head.parameters())
    log.info(
        "%d rows, %d tokens; %d held out", len(examples.training), tokens, len(examples.heldout)
    )
    log.info("drafter of %.2fM weights, %s", weights / 1e6, trainer.identity.drafter)


def progress_bar(console: Console) -> Progress:
    """A bar of 0 to 1 with the time that is left."""
    text, left = TextColumn("{task.description}"), TimeRemainingColumn()
    return Progress(text, BarColumn(), TaskProgressColumn(), left, console=console)


@contextmanager
def training_bar(trainer: Trainer, console: Console) -> Iterator[None]:
    """Show step, loss and tokens per block while the trainer works."""
    with progress_bar(console) as bar:
        task = bar.add_task("training", total=1.0)

        def show(progress: float) -> None:
            result = trainer.last_evaluation
            tau = f", tau {result.tau_block:.2f}" if result else ""
            text = f"step {trainer.state.step}, loss {trainer.last_loss:.3f}{tau}"
            bar.update(task, completed=progress, description=text)

        trainer.on_step = show
        yield


@contextmanager
def stopping_signals(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step under way; a second Ctrl-C ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.is_stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
