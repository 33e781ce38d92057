"""What `falcon serve` was asked to serve: checked early, with what to write instead."""

from __future__ import annotations

import argparse
import math
import socket
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import EngineConfig
from engine.folders import danger_in

from .api_keys import ApiKeys, BadKeys
from .dialects import AUTO, CALL_PARSERS, REASONING_PARSERS
from .origins import ANY, is_loopback

DEMO_NAME = "falcon-demo"
MIN_ENGINE_TIMEOUT = 1.0  # a healthy engine answers ten times as often


class SettingsError(Exception):
    """The command line cannot be served; the text is for the person who typed it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait, for how long, and whether unknown parameters are refused.

    Times are in seconds; a time-out of 0 is off.
    """

    max_num_queued_reqs: int = 256
    queue_timeout: float = 60.0
    request_timeout: float = 600.0
    engine_timeout: float = 60.0
    strict_params: bool = False
    shutdown_timeout: float = 25.0
    shutdown_delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    `trusts_host` says that a browser is believed under whatever name it calls this server;
    `open_metrics` that `/metrics` needs no key.
    """

    keys: ApiKeys = field(default_factory=ApiKeys)
    allowed_origins: tuple[str, ...] = ()
    trusts_host: bool = False
    open_metrics: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    engine: EngineConfig
    model_name: str
    host: str
    port: int
    limits: Limits = Limits()
    access: Access = field(default_factory=Access)
    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO

    @property
    def model_folder(self) -> Path:
        return Path(self.engine.model)


def demo_folder() -> Path:
    """Where the embedded pair lies: beside the packages."""
    return Path(__file__).resolve().parent.parent / "models" / "demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="model folder (default: the embedded demo)")
    add("--drafter", metavar="DIR", help="drafter folder made by 'falcon train' for this model")
    add(
        "--speculation",
        choices=["auto", "always", "off"],
        default="auto",
        help="draft as much as pays for the present load, the drafter's whole tree, or nothing "
        "(default: %(default)s)",
    )
    add(
        "--deterministic",
        action="store_true",
        help="in bfloat16 too, let no answer depend on its neighbours; costs throughput",
    )
    add("--served-model-name", metavar="NAME", help="name in the API (default: the folder's)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    add("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--max-model-len", type=int, default=0, metavar="N", help="context length (0: the model's)")
    add("--max-num-seqs", type=int, default=8, metavar="N", help="requests at once (default: 8)")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (0: torch's default)")
    add(
        "--tool-call-parser",
        choices=CALL_PARSERS,
        default=AUTO,
        help="how the model writes tool calls (default: as its chat template shows)",
    )
    add(
        "--reasoning-parser",
        choices=REASONING_PARSERS,
        default=AUTO,
        help="whether answers begin with <think>...</think> (default: if the template knows it)",
    )
    add(
        "--strict-params",
        action="store_true",
        help="refuse unknown request parameters instead of naming them in a header",
    )
    _add_access(parser)
    _add_limits(parser)


def _add_access(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("access").add_argument
    add(
        "--api-key",
        nargs="+",
        default=[],
        metavar="KEY",
        help="require one of these keys; other users of this machine can see a command line, so "
        "prefer --api-key-file",
    )
    add(
        "--api-key-file",
        metavar="FILE",
        help="require one of the keys in FILE, one a line; read again on SIGHUP",
    )
    add(
        "--allow-unauthenticated",
        action="store_true",
        help="serve without a key also beyond this machine",
    )
    add(
        "--open-metrics",
        action="store_true",
        help="let /metrics be read without a key",
    )
    add(
        "--allowed-origins",
        nargs="+",
        default=[],
        metavar="ORIGIN",
        help="web pages that may use this server, such as https://chat.example.com, or '*' "
        "(default: only its own)",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    usual, add = Limits(), parser.add_argument_group("limits").add_argument
    add(
        "--max-num-queued-reqs",
        type=int,
        default=usual.max_num_queued_reqs,
        metavar="N",
        help="requests that may wait for a slot; more get a 429 (default: %(default)s)",
    )
    times = {
        "--queue-timeout": (usual.queue_timeout, "until the first token; 0: any time"),
        "--request-timeout": (usual.request_timeout, "until the last token; 0: any time"),
        "--engine-timeout": (
            usual.engine_timeout,
            "of silence until the engine is replaced: more than its longest forward takes",
        ),
        "--shutdown-timeout": (
            usual.shutdown_timeout,
            "for running requests to finish after SIGTERM; 0: end them at once",
        ),
        "--shutdown-delay": (
            usual.shutdown_delay,
            "to serve on after SIGTERM, not ready, until balancers have noticed",
        ),
    }
    for flag, (seconds, text) in times.items():
        help_line = f"seconds {text} (default: {seconds:g})"
        add(flag, type=float, default=seconds, metavar="S", help=help_line)


def settings_from(args: argparse.Namespace) -> Settings:
    """Check what was typed. Raises `SettingsError`."""
    _check_numbers(args)
    is_demo = args.model is None
    model = demo_folder() / "target" if is_demo else Path(args.model)
    _check_model(model, is_demo)
    engine = EngineConfig(
        model=str(model),
        drafter=_drafter(args, is_demo),
        dtype=args.dtype,
        device=args.device,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        threads=args.threads,
        speculation=args.speculation,
        deterministic=args.deterministic,
    )
    name = args.served_model_name or (DEMO_NAME if is_demo else model.resolve().name)
    return Settings(
        engine,
        name,
        args.host,
        args.port,
        _limits(args),
        _access(args),
        args.tool_call_parser,
        args.reasoning_parser,
    )


def _access(args: argparse.Namespace) -> Access:
    try:
        file = None if args.api_key_file is None else Path(args.api_key_file)
        keys = ApiKeys(args.api_key, file)
    except BadKeys as error:
        raise SettingsError(f"{error} (--api-key, --api-key-file)") from None
    if not (keys.are_required or args.allow_unauthenticated or _is_local(args.host)):
        raise SettingsError(
            f"--host {args.host} can be reached from other machines, and no API key is set: add "
            "--api-key-file FILE, or --allow-unauthenticated to let everybody use the server"
        )
    return Access(
        keys=keys,
        allowed_origins=_origins(args.allowed_origins),
        trusts_host=keys.are_required or args.allow_unauthenticated,
        open_metrics=args.open_metrics,
    )


def _is_local(host: str) -> bool:
    """Whether only this machine can reach the address; unknown names are for later to complain."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return True
    return all(is_loopback(str(address[0])) for *_, address in found)


def _origins(origins: list[str]) -> tuple[str, ...]:
    for origin in origins:
        scheme, separator, host = origin.partition("://")
        if origin != ANY and not (scheme and separator and host and "/" not in host):
            raise SettingsError(
                f"--allowed-origins {origin}: write scheme://host or scheme://host:port, or '*'"
            )
    return tuple(origins)


def _limits(args: argparse.Namespace) -> Limits:
    if args.max_num_queued_reqs < 0:
        raise SettingsError(
            f"--max-num-queued-reqs {args.max_num_queued_reqs}: use 0 to let no request wait, or "
            "how many may"
        )
    for name in (
        "queue_timeout",
        "request_timeout",
        "engine_timeout",
        "shutdown_timeout",
        "shutdown_delay",
    ):
        seconds, least = getattr(args, name), MIN_ENGINE_TIMEOUT if "engine" in name else 0.0
        if not least <= seconds < math.inf:
            flag = "--" + name.replace("_", "-")
            raise SettingsError(f"{flag} {seconds:g}: use {least:g} or more seconds")
    return Limits(
        max_num_queued_reqs=args.max_num_queued_reqs,
        queue_timeout=args.queue_timeout,
        request_timeout=args.request_timeout,
        engine_timeout=args.engine_timeout,
        strict_params=args.strict_params,
        shutdown_timeout=args.shutdown_timeout,
        shutdown_delay=args.shutdown_delay,
    )


def _check_numbers(args: argparse.Namespace) -> None:
    if not 0 <= args.port <= 65535:
        raise SettingsError(f"--port {args.port}: use a port from 1 to 65535, or 0 for a free one")
    if args.max_num_seqs < 1:
        raise SettingsError(f"--max-num-seqs {args.max_num_seqs}: serve at least 1 request at once")
    for flag in ("max_model_len", "threads"):
        if (value := getattr(args, flag)) < 0:
            name = "--" + flag.replace("_", "-")
            raise SettingsError(f"{name} {value}: use a positive number, or 0 for the default")
    if args.speculation == "off" and args.drafter is not None:
        raise SettingsError("--drafter and --speculation off exclude each other: leave one out")


def _check_model(folder: Path, is_demo: bool) -> None:
    if not folder.is_dir():
        advice = (
            "the embedded demo is not part of this installation; name a model: falcon serve MODEL"
            if is_demo
            else "MODEL is a folder of a Hugging Face checkpoint; download it first, for example "
            "with 'hf download'"
        )
        raise SettingsError(f"no model folder {folder}: {advice}")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise SettingsError(
                f"{folder} has no {name}: a model folder holds config.json, tokenizer.json and "
                "*.safetensors (save the tokenizer there with save_pretrained)"
            )
    if (danger := danger_in(folder)) is not None:
        raise SettingsError(danger)


def _drafter(args: argparse.Namespace, is_demo: bool) -> str | None:
    if args.speculation == "off":
        return None
    if args.drafter is None:
        return str(demo_folder() / "drafter") if is_demo else None
    if not Path(args.drafter).is_dir():
        raise SettingsError(
            f"no drafter folder {args.drafter}: make one with 'falcon train', or leave --drafter "
            "out to serve without speculation"
        )
    return str(args.drafter)
