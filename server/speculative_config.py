"""`--speculative-config`, what drafts in vLLM's words: a drafter, or prompt lookup."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.config import NGrams

DRAFTER = "falcon"
PROMPT_LOOKUP = "ngram"
KNOWN = {
    DRAFTER: ("method", "model"),
    PROMPT_LOOKUP: ("method", *NGrams.__struct_fields__),
}
ADVICE = {
    "model": "prompt lookup has no model of its own: leave it out",
    "num_speculative_tokens": "the drafter's own plan.json says what it drafts: leave it out",
    "draft_tensor_parallel_size": "the drafter runs where the model does: leave it out",
    "rejection_sample_method": "every answer is exact: leave it out",
    "disable_by_batch_size": "set --speculation auto, which drafts as much as pays",
}


class BadConfig(Exception):
    """The configuration cannot be honoured; the text says what to write instead."""


def drafting_of(config: str) -> str | NGrams:
    """The drafter's folder, or how prompt lookup looks. Raises `BadConfig`."""
    try:
        fields = json.loads(config)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise BadConfig(
            'write a JSON object such as \'{"method": "falcon", "model": "DIR"}\' or '
            '\'{"method": "ngram"}\''
        )
    method = fields.get("method", DRAFTER)
    if method not in [*KNOWN]:
        raise BadConfig(f"method '{method}': choose from {', '.join(KNOWN)}")
    for name in fields:
        if name not in KNOWN[method]:
            advice = ADVICE.get(name, f"known with '{method}' are {', '.join(KNOWN[method])}")
            raise BadConfig(f"'{name}': {advice}")
    return _ngrams(fields) if method == PROMPT_LOOKUP else _folder(fields)


def _folder(fields: Mapping[str, Any]) -> str:
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise BadConfig("'model' must name the drafter's folder, made by 'falcon train'")
    return model


def _ngrams(fields: Mapping[str, Any]) -> NGrams:
    """A shortest n-gram that is longer than the usual longest one is the longest as well."""
    sizes = {name: value for name, value in fields.items() if name != "method"}
    least, usual = sizes.get("prompt_lookup_min"), NGrams().prompt_lookup_max
    if isinstance(least, int):
        sizes.setdefault("prompt_lookup_max", max(least, usual))
    try:
        return msgspec.convert(sizes, NGrams)
    except msgspec.ValidationError as error:
        raise BadConfig(str(error)) from None
