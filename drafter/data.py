"""Training rows: from JSON lines to token ids, with the target's answers marked.

{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
{"prompt": "2+2?", "response": "4"}

ids        <bos> <user> 2+2? <end> <assistant> 4 <end>
is_answer    .     .     .     .        .      x   x
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor

from .config import DrafterError

log = logging.getLogger(__name__)

Message = dict[str, str]
FIRST_FORETOLD = 5  # the first position that a drafter of any block size (up to 4) can foretell
ROWS_PER_CALL = 512  # rows tokenised at once, so that the tokenizer can use its threads


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation: `ids` [S] int32 and `is_answer` [S] bool, written by the assistant."""

    ids: NDArray[np.int32]
    is_answer: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples padded on the right: `ids` [B,S] int64, `is_answer` [B,S] bool (False in padding).

    `num_tokens` counts what is not padding. `features` [B,S,H] are the target's, if known already.
    """

    ids: Tensor
    is_answer: Tensor
    num_tokens: int
    features: Tensor | None = None


def read_rows(files: Sequence[Path]) -> Iterator[list[Message]]:
    """The conversations of JSON-lines files; raises `DrafterError` naming file and line."""
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DrafterError(f"{file} cannot be read: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse_row(line, f"{file}:{number}")


def _parse_row(line: str, place: str) -> list[Message]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DrafterError(f"{place}: not JSON: {error}") from error
    if isinstance(row, dict) and "messages" not in row and {"prompt", "response"} <= row.keys():
        pairs = (("user", row["prompt"]), ("assistant", row["response"]))
        row = {"messages": [{"role": role, "content": content} for role, content in pairs]}
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise DrafterError(f'{place}: expected "messages" or "prompt" and "response"')
    for message in messages:
        fields = message if isinstance(message, dict) else {}
        if not (isinstance(fields.get("role"), str) and isinstance(fields.get("content"), str)):
            raise DrafterError(f"{place}: a message needs a text `role` and a text `content`")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def tokenize_rows(
    rows: Iterable[list[Message]], tokenizer: Any, end_ids: Sequence[int], max_length: int
) -> list[Example]:
    """Examples of at most `max_length` tokens; rows that cannot be used are counted and logged."""
    examples: list[Example] = []
    pending: list[list[tuple[str, bool]]] = []
    num_unusable = 0
    render = _render_template if tokenizer.chat_template else _render_plain
    for row in rows:
        try:
            pending.append(render(row, tokenizer))
        except (TemplateError, _NotIncrementalError):
            num_unusable += 1
        if len(pending) == ROWS_PER_CALL:
            examples += _encode(pending, tokenizer, end_ids, max_length)
            pending = []
    examples += _encode(pending, tokenizer, end_ids, max_length)
    usable = [example for example in examples if example.is_answer[FIRST_FORETOLD:].any()]
    if num_unusable:
        log.warning("%d rows left out: the chat template does not render them", num_unusable)
    if len(usable) < len(examples):
        count = len(examples) - len(usable)
        log.warning("%d rows left out: no answer within %d tokens", count, max_length)
    return usable


class _NotIncrementalError(Exception):
    """The text of a shorter conversation is not the beginning of the longer one's."""


def _render_template(messages: list[Message], tokenizer: Any) -> list[tuple[str, bool]]:
    """Pieces (text, is_answer) of the conversation as the chat template writes it."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = (
            tokenizer.apply_chat_template(
                messages[: index + is_after], tokenize=False, add_generation_prompt=not is_after
            )
            for is_after in (0, 1)
        )
        if not (before.startswith(done) and after.startswith(before)):
            raise _NotIncrementalError
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return pieces


def _render_plain(messages: list[Message], tokenizer: Any) -> list[tuple[str, bool]]:
    """Without a chat template: the contents, one after the other, a line each."""
    pieces = [(tokenizer.bos_token or "", False)]
    pieces += [(f"{message['content']}\n", message["role"] == "assistant") for message in messages]
    if pieces[-1][1]:
        pieces[-1] = (messages[-1]["content"] + (tokenizer.eos_token or ""), True)
    return pieces


def _encode(
    rows: list[list[tuple[str, bool]]], tokenizer: Any, end_ids: Sequence[int], max_length: int
) -> list[Example]:
    # Pieces are tokenised apart, as at inference: a prompt never shares a token with its answer.
    texts = [text for row in rows for text, _ in row]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    examples = []
    for row in rows:
        ids: list[int] = []
        marks: list[bool] = []
        for _, is_answer in row:
            piece = next(encoded)
            length = _answer_length(piece, end_ids) if is_answer else 0
            ids += piece
            marks += [position < length for position in range(len(piece))]
        arrays = np.array(ids[:max_length], np.int32), np.array(marks[:max_length], np.bool_)
        examples.append(Example(*arrays))
    return examples


def _answer_length(piece: list[int], end_ids: Sequence[int]) -> int:
    """Up to the end token; what a template writes after it is not the target's to say."""
    ends = [place for place, token in enumerate(piece) if token in end_ids]
    return ends[-1] + 1 if ends else len(piece)


def split_heldout(
    examples: list[Example], share: float, limit: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """(training, held-out) examples; at least one is held out where there are two."""
    if share <= 0 or len(examples) < 2:
        return examples, []
    count = min(max(int(len(examples) * share), 1), limit)
    order = np.random.default_rng([seed, 0x5EED]).permutation(len(examples))
    held = {int(index) for index in order[:count]}
    training = [example for index, example in enumerate(examples) if index not in held]
    return training, [examples[index] for index in sorted(held)]


def plan_batches(lengths: Sequence[int], budget: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of every batch of an epoch: similar lengths together, in an order of its own.

    A batch's rows times its longest length stay within `budget` tokens; a longer row goes alone.
    """
    random = np.random.default_rng([seed, epoch])
    # The blur makes neighbours differ from epoch to epoch at the cost of a little padding.
    blurred = np.array(lengths) * random.uniform(0.95, 1.05, len(lengths))
    batches: list[list[int]] = []
    longest = 0
    for index in map(int, blurred.argsort(kind="stable")):
        longest = max(longest, lengths[index])
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return [batches[place] for place in random.permutation(len(batches))]


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Pad examples on the right with id 0."""
    shape = len(examples), max(map(len, examples))
    ids, is_answer = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.from_numpy(example.ids)
        is_answer[row, : len(example)] = torch.from_numpy(example.is_answer)
    return Batch(ids.to(device), is_answer.to(device), sum(map(len, examples)))


def digest(examples: Sequence[Example]) -> str:
    """A name for a list of examples, so that a resumed run can tell that its data changed."""
    state = hashlib.sha256()
    for example in examples:
        state.update(example.ids.tobytes() + example.is_answer.tobytes())
    return state.hexdigest()[:32]
