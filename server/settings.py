"""What `falcon serve` was asked to serve: checked early, with what to write instead."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import EngineConfig, NGrams
from engine.folders import danger_in
from engine.logs import FORMATS

from .addresses import Address, address_from
from .api_keys import ApiKeys, BadKeys
from .dialects import AUTO
from .origins import ANY
from .settings_error import SettingsError
from .speculative_config import BadConfig, drafting_of

__all__ = ["Access", "Address", "Limits", "Settings", "SettingsError", "settings_from"]

DEMO_NAME = "falcon-demo"
MIN_ENGINE_TIMEOUT = 1.0  # a healthy engine answers ten times as often


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait, for how long, and whether unknown parameters are refused.

    Times are in seconds; a time-out of 0 is off, for shutting down it is none.
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
    """The model answers to each of `model_names`; the first is its own."""

    engine: EngineConfig
    model_names: tuple[str, ...]
    address: Address
    limits: Limits = Limits()
    access: Access = field(default_factory=Access)
    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO
    chat_template: Path | None = None
    log_format: str = FORMATS[0]
    otlp_traces_endpoint: str | None = None

    @property
    def model_folder(self) -> Path:
        return Path(self.engine.model)


def demo_folder() -> Path:
    """Where the embedded pair lies: beside the packages."""
    return Path(__file__).resolve().parent.parent / "models" / "demo"


def settings_from(args: argparse.Namespace) -> Settings:
    """Check what was asked for. Raises `SettingsError`."""
    is_demo = args.model is None
    _check_model_was_not_swallowed(args)
    model = demo_folder() / "target" if is_demo else Path(args.model)
    _check_model(model, is_demo)
    address = address_from(args)
    return Settings(
        engine=_engine(args, model, is_demo),
        model_names=_names(args) or (DEMO_NAME if is_demo else model.resolve().name,),
        address=address,
        limits=limits_from(args),
        access=access_from(args, address),
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
        chat_template=_chat_template(args),
        log_format=args.log_format,
        otlp_traces_endpoint=_traces_endpoint(args.otlp_traces_endpoint),
    )


def _engine(args: argparse.Namespace, model: Path, is_demo: bool) -> EngineConfig:
    if args.max_num_seqs < 1:
        raise SettingsError(f"--max-num-seqs {args.max_num_seqs}: serve at least 1 request at once")
    if args.threads < 0:
        raise SettingsError(
            f"--threads {args.threads}: use a positive number, or 0 for the default"
        )
    drafter, ngrams = _drafting(args, is_demo)
    if args.tensor_parallel_size < 1:
        raise SettingsError(
            f"--tensor-parallel-size {args.tensor_parallel_size}: use 1, or a number that divides "
            "the model's key-value heads"
        )
    return EngineConfig(
        model=str(model),
        drafter=drafter,
        prompt_lookup=ngrams,
        dtype=args.dtype,
        device=args.device,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        threads=args.threads,
        speculation=args.speculation,
        deterministic=args.deterministic,
        tensor_parallel_size=args.tensor_parallel_size,
    )


def _names(args: argparse.Namespace) -> tuple[str, ...]:
    """Names as given, each once."""
    if not all(args.served_model_name):
        raise SettingsError("--served-model-name: a name must have a letter at least")
    return tuple(dict.fromkeys(args.served_model_name))


def _check_model_was_not_swallowed(args: argparse.Namespace) -> None:
    """A flag of several values takes a MODEL that follows it for one more."""
    for name in ("served_model_name", "api_key", "allowed_origins"):
        if args.model is None and any(Path(word).is_dir() for word in getattr(args, name)[1:]):
            flag = "--" + name.replace("_", "-")
            raise SettingsError(f"{flag} took MODEL for a value: write 'falcon serve MODEL {flag}'")


def limits_from(args: argparse.Namespace) -> Limits:
    """Raises `SettingsError`."""
    if args.max_num_queued_reqs < 0:
        raise SettingsError(
            f"--max-num-queued-reqs {args.max_num_queued_reqs}: use 0 to let no request wait, or "
            "how many may"
        )
    times = {
        name: getattr(args, name)
        for name in Limits.__dataclass_fields__
        if name.startswith(("queue_", "request_", "engine_", "shutdown_"))
    }
    for name, seconds in times.items():
        least = MIN_ENGINE_TIMEOUT if name == "engine_timeout" else 0.0
        if not least <= seconds < math.inf:
            flag = "--" + name.replace("_", "-")
            raise SettingsError(f"{flag} {seconds:g}: use {least:g} or more seconds")
    return Limits(
        max_num_queued_reqs=args.max_num_queued_reqs, strict_params=args.strict_params, **times
    )


def access_from(args: argparse.Namespace, address: Address) -> Access:
    """Who may ask a server at that address. Raises `SettingsError`."""
    try:
        file = None if args.api_key_file is None else Path(args.api_key_file)
        keys = ApiKeys(args.api_key, file)
    except BadKeys as error:
        raise SettingsError(f"{error} (--api-key, --api-key-file)") from None
    if not (keys.are_required or args.allow_unauthenticated or address.is_local):
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


def _origins(origins: list[str]) -> tuple[str, ...]:
    for origin in origins:
        scheme, separator, host = origin.partition("://")
        if origin != ANY and not (scheme and separator and host and "/" not in host):
            raise SettingsError(
                f"--allowed-origins {origin}: write scheme://host or scheme://host:port, or '*'"
            )
    return tuple(origins)


def _chat_template(args: argparse.Namespace) -> Path | None:
    if args.chat_template is None:
        return None
    file = Path(args.chat_template)
    if not file.is_file():
        raise SettingsError(f"--chat-template {file}: no such file; write the template to one")
    return file


def _traces_endpoint(url: str | None) -> str | None:
    if url is None or url.startswith(("http://", "https://")):
        return url
    raise SettingsError(f"--otlp-traces-endpoint {url}: write http://HOST:PORT/v1/traces")


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


def _drafting(args: argparse.Namespace, is_demo: bool) -> tuple[str | None, NGrams | None]:
    """The drafter's folder, and how texts are looked up in themselves."""
    asked = _asked_drafting(args)
    if args.speculation == "off":
        if asked is not None:
            what = "a drafter" if isinstance(asked, str) else "--speculative-config"
            raise SettingsError(f"{what} and --speculation off exclude each other: leave one out")
        return None, None
    if isinstance(asked, NGrams):
        if not args.prompt_lookup:
            raise SettingsError("--no-prompt-lookup and method ngram exclude each other")
        return None, asked
    if asked is not None and not Path(asked).is_dir():
        raise SettingsError(
            f"no drafter folder {asked}: make one with 'falcon train', or leave --drafter out"
        )
    ngrams = NGrams() if args.prompt_lookup else None
    return asked or (str(demo_folder() / "drafter") if is_demo else None), ngrams


def _asked_drafting(args: argparse.Namespace) -> str | NGrams | None:
    drafter: str | None = args.drafter
    if args.speculative_config is None:
        return drafter
    try:
        configured = drafting_of(args.speculative_config)
    except BadConfig as error:
        raise SettingsError(f"--speculative-config {error}") from None
    if drafter not in (None, configured):
        raise SettingsError("--drafter and --speculative-config name two drafters: leave one out")
    return configured
