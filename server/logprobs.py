"""Log-probabilities as OpenAI's chat schema has them: one entry for each token.

The entry of the stop token that ended an answer is there too, as in vLLM: entries and
`usage.completion_tokens` count the same tokens.
"""

from __future__ import annotations

from typing import Any

from engine.messages import RequestOutput, Submit, TokenLogprobs

from .tokenizer import ChatTokenizer

LEAST = -9999.0  # instead of minus infinity, which JSON does not have


class LogprobsQueue:
    """Tokens of one choice whose entries no delta has carried yet."""

    def __init__(self, submit: Submit, tokenizer: ChatTokenizer) -> None:
        self._is_wanted = submit.logprobs is not None
        self._tokenizer = tokenizer
        self._waiting: list[tuple[int, TokenLogprobs]] = []
        self._taken = 0

    def add(self, output: RequestOutput) -> None:
        if self._is_wanted:
            self._waiting += zip(output.token_ids, output.logprobs, strict=True)

    def take(self, until: int) -> list[dict[str, Any]] | None:
        """Entries of all tokens before number `until` that were not taken before."""
        if not self._is_wanted:
            return None
        count, self._taken = until - self._taken, until
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return [_entry(token_id, own, self._tokenizer) for token_id, own in taken]


class PromptEntries:
    """The same for a prompt's tokens, of which the first has no log-probability."""

    def __init__(self, submit: Submit, tokenizer: ChatTokenizer) -> None:
        self._is_wanted = submit.prompt_logprobs is not None
        self._ids = submit.prompt_ids
        self._tokenizer = tokenizer
        self._taken = 0

    def take(self, output: RequestOutput) -> list[dict[str, Any]]:
        """Entries of the tokens that the output scores; the first token's come with the first."""
        if not self._is_wanted:
            return []
        entries = []
        if self._taken == 0:
            first = _named(self._ids[0], 0.0, self._tokenizer)
            entries.append(first | {"logprob": None, "top_logprobs": []})
        start = max(1, self._taken)
        self._taken = start + len(output.prompt_logprobs)
        scored = zip(self._ids[start : self._taken], output.prompt_logprobs, strict=True)
        return entries + [_entry(token_id, own, self._tokenizer) for token_id, own in scored]


def _entry(token_id: int, own: TokenLogprobs, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """`own` is the token's; bytes are exact also where a character spans tokens."""
    others = zip(own.top_ids, own.top_logprobs, strict=True)
    best = [_named(other, value, tokenizer) for other, value in others]
    return _named(token_id, own.logprob, tokenizer) | {"top_logprobs": best}


def _named(token_id: int, logprob: float, tokenizer: ChatTokenizer) -> dict[str, Any]:
    own = tokenizer.token_bytes(token_id)
    text = "" if own is None else own.decode("utf-8", errors="replace")
    value = max(logprob, LEAST)
    return {"token": text, "logprob": value, "bytes": None if own is None else list(own)}
