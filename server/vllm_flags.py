"""Flags of `vllm serve` that mean nothing here, or that cannot be honoured: what to write instead.

Values that ask for what this server does anyway are taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

_SPLIT = "not yet: set --tensor-parallel-size, which splits every layer"
_MEMORY = "memory is sized by --max-num-seqs and --max-model-len: set these instead"
_FOLDERS = "only folders are served, nothing is downloaded: name the folder as MODEL"
_PER_REQUEST = "it belongs to a request: let clients send it"
_NO_PROMPTS = "never: prompts are in no log. Each request has one line with its figures"
_PROXY = "every path is relative: let the proxy take its prefix off"


class Refused(NamedTuple):
    """A flag with the values that are fine (None: it takes no value), and advice for others."""

    flags: tuple[str, ...]
    fine: tuple[str, ...] | None
    advice: str


REFUSED = [
    Refused(("--pipeline-parallel-size", "-pp"), ("1",), _SPLIT),
    Refused(("--data-parallel-size", "-dp"), ("1",), "start one server a replica, behind a proxy"),
    Refused(("--distributed-executor-backend",), ("mp",), "ranks are processes: leave it out"),
    Refused(
        ("--trust-remote-code",),
        None,
        "never: no code of a model folder is run. Models that transformers itself knows need none",
    ),
    Refused(("--quantization", "-q"), ("none", "None"), "not yet: set --dtype"),
    Refused(("--load-format",), ("auto", "safetensors"), "only safetensors are read"),
    Refused(("--kv-cache-dtype",), ("auto",), "not yet: the cache has the dtype of the model"),
    Refused(("--gpu-memory-utilization",), (), _MEMORY),
    Refused(("--kv-cache-memory-bytes",), (), _MEMORY),
    Refused(("--swap-space",), ("0",), _MEMORY),
    Refused(("--cpu-offload-gb",), ("0",), _MEMORY),
    Refused(("--block-size",), (), "the cache has no blocks. Leave it out"),
    Refused(("--max-num-batched-tokens",), (), "prompts are cut into chunks anyway. Leave it out"),
    Refused(("--tokenizer",), (), "the tokenizer is the model folder's: put tokenizer.json there"),
    Refused(("--tokenizer-mode",), ("auto",), "the tokenizer is the model folder's"),
    Refused(("--revision",), (), _FOLDERS),
    Refused(("--code-revision",), (), _FOLDERS),
    Refused(("--tokenizer-revision",), (), _FOLDERS),
    Refused(("--download-dir",), (), _FOLDERS),
    Refused(("--hf-token",), (), _FOLDERS),
    Refused(("--seed",), (), _PER_REQUEST),
    Refused(("--generation-config",), ("vllm",), _PER_REQUEST),
    Refused(("--override-generation-config",), (), _PER_REQUEST),
    Refused(("--scheduling-policy",), ("fcfs",), "keys share fairly, and the oldest goes first"),
    Refused(
        ("--spec-method",),
        ("falcon",),
        'falcon is set by --spec-model, ngram by --speculative-config \'{"method": "ngram"}\'',
    ),
    Refused(
        ("--spec-tokens", "--num-speculative-tokens"),
        (),
        "the drafter's own plan.json says what it drafts, --speculation how much of it, and "
        "--speculative-config has it for prompt lookup",
    ),
    Refused(("--enable-lora",), None, "not yet: merge the adapter into the model"),
    Refused(("--lora-modules",), (), "not yet: merge the adapter into the model"),
    Refused(("--no-enable-prefix-caching",), None, "it changes no answer. Leave it out"),
    Refused(("--enable-log-requests",), None, _NO_PROMPTS),
    Refused(("--enable-log-outputs",), None, _NO_PROMPTS),
    Refused(("--uvicorn-log-level",), (), "set --log-level"),
    Refused(("--root-path",), ("",), _PROXY),
    Refused(("--middleware",), (), "never: put it into a proxy in front of the server"),
    Refused(("--trust-request-chat-template",), None, "never: set --chat-template"),
    Refused(("--chat-template-content-format",), ("auto", "string"), "contents are text"),
    Refused(("--response-role",), ("assistant",), "answers are the assistant's"),
]
# What they ask for is how this server is.
FINE = [
    "--enforce-eager",
    "--enable-auto-tool-choice",
    "--enable-reasoning",
    "--enable-prefix-caching",
    "--enable-chunked-prefill",
    "--enable-prompt-tokens-details",
    "--enable-request-id-headers",
    "--no-enable-log-requests",
    "--disable-log-requests",
    "--disable-uvicorn-access-log",
    "--disable-log-stats",
    "--disable-frontend-multiprocessing",
]


def add_refused(parser: argparse.ArgumentParser) -> None:
    """Add those that the parser does not honour itself. None of them shows in its help."""
    known = set(parser._option_string_actions)
    for refused in [*REFUSED, *(Refused((flag,), None, "") for flag in FINE)]:
        flags = [flag for flag in refused.flags if flag not in known]
        if flags:
            parser.add_argument(
                *flags,
                action=_Refusal,
                refused=refused,
                nargs=0 if refused.fine is None else 1,
                dest=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )


class _Refusal(argparse.Action):
    def __init__(self, refused: Refused, **options: Any) -> None:
        super().__init__(**options)
        self._refused = refused

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        words = " ".join([str(option_string), *map(str, values or [])])
        is_fine = values[0] in (self._refused.fine or ()) if values else not self._refused.advice
        if not is_fine:
            parser.error(f"{words}: {self._refused.advice}")
