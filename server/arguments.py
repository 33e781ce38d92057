"""The flags of `falcon serve`, in the words that users of `vllm serve` know, by group."""

from __future__ import annotations

import argparse
import re

from engine.logs import FORMATS, LEVELS

from .dialects import AUTO, CALL_PARSERS, REASONING_PARSERS
from .settings import Limits
from .vllm_flags import add_refused

DTYPES = {"half": "float16", "float": "float32"}  # vLLM's other names
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "K": 2**10,
    "M": 2**20,
}
_COUNT = re.compile(r"([0-9]+)(\.[0-9]+)?([kmKM]?)")
SWITCH = argparse.BooleanOptionalAction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags; each can be given as FALCON_... and in the file of --config as well."""
    parser.usage = "%(prog)s [MODEL] [--flag value ...]"
    parser.epilog = (
        "Every flag can also be set as an environment variable, --max-num-seqs as "
        "FALCON_MAX_NUM_SEQS, and in the file of --config. The command line wins over the file, "
        "the file over the environment."
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="model folder (default: the embedded demo)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with flags, by their names")
    _add_model(parser)
    _add_speculation(parser)
    _add_engine(parser)
    _add_address(parser)
    _add_access(parser)
    _add_requests(parser)
    _add_times(parser)
    _add_logs(parser)
    add_refused(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--served-model-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names in the API; answers carry the one that was asked for (default: the folder's)",
    )
    add("--chat-template", metavar="FILE", help="chat template to use instead of the model's own")
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
        "--dtype",
        type=lambda name: DTYPES.get(name, name),
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="of weights and computation (default: what suits the device)",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: CUDA if any")
    add(
        "--max-model-len",
        type=token_count,
        default=0,
        metavar="N",
        help="context length in tokens, as 8192, 32k (32,000) or 32K (32,768); auto: the model's "
        "(default: auto)",
    )


def _add_speculation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("speculation").add_argument
    add(
        "--drafter",
        "--spec-model",
        dest="drafter",
        metavar="DIR",
        help="what drafts for this model: a folder made by 'falcon train', or a small model of the "
        "same vocabulary (default: none)",
    )
    add(
        "--prompt-lookup",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draft also what the text has said before, where it pays (default: yes)",
    )
    add(
        "--speculative-config",
        "-sc",
        metavar="JSON",
        help='the same in vLLM\'s words: \'{"method": "falcon", "model": "DIR"}\', or '
        '\'{"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1, '
        '"num_speculative_tokens": 8}\'',
    )
    add(
        "--speculation",
        choices=["auto", "always", "off"],
        default="auto",
        help="draft as much as pays for the present load, the drafter's whole tree, or nothing "
        "(default: %(default)s)",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("engine").add_argument
    add("--max-num-seqs", type=int, default=8, metavar="N", help="requests at once (default: 8)")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads (0: torch's default)")
    add(
        "--tensor-parallel-size",
        "-tp",
        type=int,
        default=1,
        metavar="N",
        help="split the model over N processes, each with a GPU of its own (default: 1)",
    )
    add(
        "--deterministic",
        action=SWITCH,
        default=False,
        help="in bfloat16 too, let no answer depend on its neighbours; costs throughput",
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("address").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="port, or 0 for a free one (default: %(default)s)")
    add("--uds", metavar="PATH", help="Unix socket to listen on instead")
    add("--ssl-certfile", metavar="FILE", help="TLS certificate, with its chain")
    add("--ssl-keyfile", metavar="FILE", help="its private key, not encrypted")
    add("--ssl-ca-certs", metavar="FILE", help="let in only clients with a certificate of these")


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
        action=SWITCH,
        default=False,
        help="serve without a key also beyond this machine",
    )
    add(
        "--open-metrics",
        action=SWITCH,
        default=False,
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


def _add_requests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("requests").add_argument
    add(
        "--max-num-queued-reqs",
        type=int,
        default=Limits().max_num_queued_reqs,
        metavar="N",
        help="requests that may wait for a slot; more get a 429 (default: %(default)s)",
    )
    add(
        "--strict-params",
        action=SWITCH,
        default=False,
        help="refuse unknown request parameters instead of naming them in a header",
    )


def _add_times(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("times, in seconds").add_argument
    texts = {
        "queue_timeout": "until the first token; 0: any time",
        "request_timeout": "until the last token; 0: any time",
        "engine_timeout": "of silence until the engine is replaced: more than its longest forward",
        "shutdown_timeout": "for running requests to finish after SIGTERM; 0: none",
        "shutdown_delay": "to serve on after SIGTERM, not ready, until balancers have noticed",
    }
    usual = Limits()
    for name, text in texts.items():
        seconds = getattr(usual, name)
        flag = "--" + name.replace("_", "-")
        help_line = f"{text} (default: {seconds:g})"
        add(flag, type=float, default=seconds, metavar="S", help=help_line)


def _add_logs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("logs and traces").add_argument
    add(
        "--log-format",
        choices=FORMATS,
        default=FORMATS[0],
        help="of the log on stderr, one line a request (default: %(default)s)",
    )
    add("--log-level", choices=LEVELS, default="info", help="default: %(default)s")
    add(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="send a trace of every request there, by OTLP over HTTP, for example "
        "http://localhost:4318/v1/traces (needs the extra 'otel')",
    )


def token_count(text: str) -> int:
    """A number of tokens; 0 for "auto" and -1, which vLLM writes for it."""
    if text in ("auto", "-1"):
        return 0
    found = _COUNT.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no number of tokens: use one such as 8192, 32k (32,000), 32K (32,768), "
            "or auto"
        )
    whole, fraction, unit = found.groups()
    return int(float(whole + (fraction or "")) * _UNITS[unit])
