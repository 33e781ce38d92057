"""The `falcon` command: finds the asked command's module and imports only that.

`falcon serve` must never import torch, and `falcon chat` should start at once, so a command's
module is loaded only when it is the one that was asked for. Each has `add_arguments(parser)` and
`run(args) -> int`, and may have a `parse(parser, words)` of its own.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

COMMANDS = {
    "serve": ("server.serve", "serve a model behind an OpenAI-compatible API"),
    "chat": ("server.chat_command", "talk to a running server in the terminal"),
    "train": ("drafter.command", "train a Falcon drafter for a model"),
    "bench": ("benchmarks.command", "measure speed next to other decoding methods"),
    "tune": ("benchmarks.tune", "find the decoding trees that are fastest on this device"),
}
PACKAGES = ("tree", "drafter", "engine", "benchmarks")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status is ours. 2 is an error of the person who typed."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        return _overview(words)
    if (complaint := foreign_package()) is not None:
        print(f"falcon: {complaint}", file=sys.stderr)
        return 2
    name, (module_name, help_line) = words[0], COMMANDS[words[0]]
    module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(
        prog=f"falcon {name}",
        description=help_line[0].upper() + help_line[1:],
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parse = getattr(module, "parse", argparse.ArgumentParser.parse_args)
    try:
        status: int = module.run(parse(parser, words[1:]))
    except KeyboardInterrupt:
        return 130
    return status


def foreign_package() -> str | None:
    """What is wrong when one of our package names resolves to somebody else's; None when fine."""
    root = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return f"the package '{name}' is missing from {root}: install the project again"
        if root not in Path(spec.origin).resolve().parents:
            return (
                f"the package '{name}' comes from {spec.origin}, not from {root}. Another "
                "distribution uses the same name (dm-tree installs 'tree'): uninstall it, or "
                "install Falcon in a virtual environment of its own"
            )
    return None


def _overview(words: Sequence[str]) -> int:
    """`falcon`, `falcon --help`, `falcon --version`, and commands that do not exist."""
    parser = argparse.ArgumentParser(
        prog="falcon",
        description="Lossless speculative decoding with Falcon behind an OpenAI-compatible server.",
        epilog="\n".join(["commands:", *_command_lines(), "", "falcon COMMAND --help says more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("falcon-server"))
    parser.add_argument("command", choices=sorted(COMMANDS), metavar="COMMAND", nargs="?")
    parser.parse_args(words)
    parser.print_help(sys.stderr)
    return 2


def _command_lines() -> list[str]:
    return [f"  {name:<7} {help_line}" for name, (_, help_line) in COMMANDS.items()]


if __name__ == "__main__":
    sys.exit(main())
