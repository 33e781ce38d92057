"""Answers written anew by the target itself: what the drafter will have to foretell when served.

    OUT/regenerated.jsonl    {"ids": [...], "answer_start": n}, one line per conversation
    OUT/regenerated.json     what they were made with; other settings are refused

Only the last answer of a conversation is replaced. Lines are written batch by batch, in an order
that the seed decides, so an interrupted run goes on behind the last whole batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from .config import DrafterError
from .data import FIRST_FORETOLD, Example
from .sidecar import check_sidecar, write_sidecar
from .target import FrozenTarget

log = logging.getLogger(__name__)

Prompt = NDArray[np.int32]
MIN_ANSWER = 8  # prompts that leave less room than this are not worth a row


class RegenerateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`limit` rows are drawn at random; None takes all. `max_length` bounds prompt and answer."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    limit: int | None = None
    max_length: int = 1024
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise DrafterError(f"{name} must be positive, not {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise DrafterError(f"limit must be positive, not {self.limit}")
        if self.temperature < 0:
            raise DrafterError(f"temperature must not be negative, not {self.temperature}")


def regenerate(
    target: FrozenTarget,
    examples: Sequence[Example],
    settings: RegenerateSettings,
    file: Path,
    data: str,
    on_batch: Callable[[float], None] = lambda share: None,
) -> list[Example]:
    """The examples with their last answers replaced, from `file` as far as it goes.

    `data` names the examples (see `data.digest`). Raises `DrafterError` when `file` was made
    otherwise.
    """
    prompts = choose_prompts(examples, settings)
    batches = order_batches(prompts, settings)
    _check_identity(file, {"data": data, "target": target.fingerprint}, settings)
    done = _whole_batches(file, batches)
    log.info("regenerating %d answers, %d of %d batches done", len(prompts), done, len(batches))
    for index in range(done, len(batches)):
        on_batch(index / len(batches))
        batch = [prompts[place] for place in batches[index]]
        answers = generate_answers(target, batch, settings, settings.seed + index)
        with file.open("a", encoding="utf-8") as stream:
            for prompt, answer in zip(batch, answers, strict=True):
                row = {"ids": [*prompt.tolist(), *answer], "answer_start": len(prompt)}
                stream.write(json.dumps(row, separators=(",", ":")) + "\n")
    on_batch(1.0)
    return read_regenerated(file)


def choose_prompts(examples: Sequence[Example], settings: RegenerateSettings) -> list[Prompt]:
    """What comes before the last answer of each chosen example, where room for an answer is left.

    ids        <bos> hi <end> yes <end> more <end> ok <end>      prompt: up to and without `ok`
    is_answer    .   .    .    x    x     .    .    x   x
    """
    prompts = []
    for example in examples:
        starts = np.flatnonzero(example.is_answer & ~np.roll(example.is_answer, 1))
        if starts.size and 0 < starts[-1] <= settings.max_length - MIN_ANSWER:
            prompts.append(example.ids[: starts[-1]])
    if settings.limit is not None and settings.limit < len(prompts):
        order = np.random.default_rng([settings.seed, 0xFA1C]).permutation(len(prompts))
        prompts = [prompts[index] for index in sorted(order[: settings.limit])]
    return prompts


def order_batches(prompts: Sequence[Prompt], settings: RegenerateSettings) -> list[list[int]]:
    """Prompts of like length together; batches shuffled, so any first part is a fair sample."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = settings.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    shuffled = np.random.default_rng([settings.seed, 0xBA7C]).permutation(len(batches))
    return [batches[place] for place in shuffled]


@torch.inference_mode()
def generate_answers(
    target: FrozenTarget, prompts: Sequence[Prompt], settings: RegenerateSettings, seed: int
) -> list[list[int]]:
    """The target's answers, each up to and with its end token; at least one token each."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, width - len(prompt) :] = 1
    torch.manual_seed(seed)
    # Replaced, not passed: what a given one leaves open is filled in from the model's own.
    target.model.generation_config = _generation_config(target, settings, width)
    output = target.model.generate(
        input_ids=ids.to(target.device), attention_mask=mask.to(target.device)
    )
    return [_cut(answer, target.end_ids) for answer in output[:, width:].tolist()]


def _generation_config(
    target: FrozenTarget, settings: RegenerateSettings, width: int
) -> GenerationConfig:
    is_sampling = settings.temperature > 0
    sampling = {"temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        max_new_tokens=min(settings.max_new_tokens, settings.max_length - width),
        do_sample=is_sampling,
        eos_token_id=list(target.end_ids) or None,
        pad_token_id=target.end_ids[0] if target.end_ids else 0,
        **(sampling if is_sampling else {}),
    )


def _cut(answer: list[int], end_ids: Sequence[int]) -> list[int]:
    ends = [place for place, token in enumerate(answer) if token in end_ids]
    return answer[: ends[0] + 1] if ends else answer


def _check_identity(file: Path, about: dict[str, str], settings: RegenerateSettings) -> None:
    sidecar = file.with_suffix(".json")
    asked = about | msgspec.to_builtins(settings)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_sidecar(sidecar, asked)
        file.touch()
        return
    check_sidecar(sidecar, file, asked)


def _whole_batches(file: Path, batches: list[list[int]]) -> int:
    """How many batches `file` holds; what follows the last whole one is cut off."""
    lines = file.read_bytes().split(b"\n")[:-1]
    done = kept = 0
    while done < len(batches) and kept + len(batches[done]) <= len(lines):
        kept += len(batches[done])
        done += 1
    with file.open("r+b") as stream:
        stream.truncate(sum(len(line) + 1 for line in lines[:kept]))
    return done


def read_regenerated(file: Path) -> list[Example]:
    """The examples of a file; rows too short to learn from are left out."""
    examples = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ids = np.array(row["ids"], np.int32)
        if len(ids) > FIRST_FORETOLD:
            examples.append(Example(ids, np.arange(len(ids)) >= row["answer_start"]))
    return examples
