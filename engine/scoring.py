"""Scores a prompt: what the target itself thinks of each of its tokens.

Row i of a prompt has read the tokens 0 to i, so its feature, through the head, scores token i + 1.
Features of committed rows are kept, so a prefix that is cached is scored without being computed.

    tokens   a  b  c  d        the last row is the root of the first tree: it names a new token
    rows     0  1  2 (3)
    scores   -  b  c  d        the first token has none
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from .messages import MAX_LOGPROBS, Submit, TokenLogprobs
from .rows import ROW_CLASS
from .sampling import logprobs
from .scheduler import Chunk
from .target import Target

SCORED_ROWS = 32  # through the head at once: of the class of a decoding step's rows


def check_scores(request: Submit, target: Target) -> None:
    """Raises `ValueError` where a request asks for log-probabilities that it cannot be given."""
    for count in (request.logprobs, request.prompt_logprobs):
        if count is not None and not 0 <= count <= MAX_LOGPROBS:
            raise ValueError(f"{count} alternatives to a token: use 0 to {MAX_LOGPROBS}")
    if request.prompt_logprobs is not None and target.head is None:
        raise ValueError(f"prompts are not scored by {target.config.model_type}")


def score_prompt(target: Target, chunk: Chunk) -> list[TokenLogprobs] | None:
    """Scores of the tokens behind a chunk's rows, which are committed: those not out yet.

    Empty where the request asks for none, None where a logit is not finite.
    """
    sequence, scores = chunk.sequence, list[TokenLogprobs]()
    stop = min(chunk.stop, sequence.num_scores)
    while sequence.scored < stop:
        last = min(sequence.scored + SCORED_ROWS, stop)
        features = target.features[sequence.slot, sequence.scored : last]
        tokens = sequence.ids[sequence.scored + 1 : last + 1]
        own = _scores(target, features, tokens, sequence.request.prompt_logprobs or 0)
        if own is None:
            return None
        scores += own
        sequence.scored = last
    return scores


def _scores(
    target: Target, features: Tensor, tokens: Sequence[int], count: int
) -> list[TokenLogprobs] | None:
    """Scores of tokens [R] by the rows in front of them, features [R,H]."""
    assert target.head is not None, "the engine refuses such requests"
    padding = -len(tokens) % ROW_CLASS
    logits = target.head(F.pad(features, (0, 0, 0, padding)))[: len(tokens)]  # [R,V]
    if not bool(logits.amax(-1).isfinite().all()):  # sync: once for the rows of a product
        return None
    return logprobs(logits, tokens, count)
