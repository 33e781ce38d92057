"""`--speculative-config`, the drafter in vLLM's words."""

from __future__ import annotations

import json

METHOD = "falcon"
KNOWN = ("method", "model")
ADVICE = {
    "num_speculative_tokens": "the drafter's own plan.json says what it drafts: leave it out",
    "draft_tensor_parallel_size": "the drafter runs where the model does: leave it out",
    "rejection_sample_method": "every answer is exact: leave it out",
    "disable_by_batch_size": "set --speculation auto, which drafts as much as pays",
}


class BadConfig(Exception):
    """The configuration cannot be honoured; the text says what to write instead."""


def drafter_of(config: str) -> str:
    """The drafter's folder. Raises `BadConfig`."""
    try:
        fields = json.loads(config)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise BadConfig('write a JSON object such as \'{"method": "falcon", "model": "DIR"}\'')
    for name in fields:
        if name not in KNOWN:
            advice = ADVICE.get(name, f"known are {' and '.join(KNOWN)}")
            raise BadConfig(f"'{name}': {advice}")
    if fields.get("method", METHOD) != METHOD:
        raise BadConfig(f"method '{fields['method']}': the only one is '{METHOD}'")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise BadConfig("'model' must name the drafter's folder, made by 'falcon train'")
    return model
