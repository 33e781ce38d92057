"""A step of the engine as the `falcon` object of a streamed chunk, for a request that asks."""

from __future__ import annotations

from typing import Any

from engine.messages import RequestOutput

from .tokenizer import ChatTokenizer


def step_trace(
    index: int, output: RequestOutput, consumed: int, tokenizer: ChatTokenizer
) -> dict[str, Any] | None:
    """What a step did for choice `index`, whose answer got the first `consumed` of its tokens.

    Texts are one token's each: a part of a character is U+FFFD, a special token its name. None
    without a trace.
    """
    if (trace := output.trace) is None:
        return None
    kept = zip(output.token_ids[:consumed], output.sources, strict=False)
    return {
        "index": index,
        "tokens": [{"text": tokenizer.token_text(id), "source": source} for id, source in kept],
        "tree": {
            "tokens": [tokenizer.token_text(id) for id in trace.tokens],
            "parents": trace.parents,
            "root": trace.root,
            "path": trace.path,
        },
        "provisional": trace.provisional,
        "passes": trace.passes,
        "draft_ms": trace.draft_ms,
        "verify_ms": trace.verify_ms,
    }
