"""Prompt files: JSON lines in the usual forms, rendered with the model's own chat template.

{"messages": [{"role": "user", "content": "..."}]}   a trailing assistant turn is dropped
{"turns": ["...", ...]}                              the first turn (MT-Bench, Spec-Bench)
{"prompt": "..."}                                    (HumanEval)
{"question": "..."}                                  (GSM8K)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from .settings import BenchmarkError

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as the model reads it; `source` names its file in reports."""

    source: str
    ids: list[int]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The prompts that fit the context, and how many did not."""

    prompts: tuple[Prompt, ...]
    skipped: int

    @property
    def longest(self) -> int:
        return max(len(prompt.ids) for prompt in self.prompts)


def load_prompts(files: Sequence[Path], tokenizer: Any, longest: int, limit: int = 0) -> PromptSet:
    """The first `limit` prompts (0: all) of each file, but those of more than `longest` ids.

    Raises `BenchmarkError` for a row that is no prompt, by file and line, or when none is left.
    """
    prompts: list[Prompt] = []
    for file, source in zip(files, source_names(files), strict=True):
        for where, messages in read_rows(file, limit):
            prompts.append(Prompt(source, encode(tokenizer, messages, where)))
    kept = tuple(prompt for prompt in prompts if 0 < len(prompt.ids) <= longest)
    if not kept:
        raise BenchmarkError(
            f"none of {len(prompts)} prompts has 1 to {longest} tokens, "
            "which is what context length and --max-tokens leave"
        )
    return PromptSet(kept, skipped=len(prompts) - len(kept))


def source_names(files: Sequence[Path]) -> list[str]:
    """Short names for reports: file stems, or whole paths where stems would not tell them apart."""
    if len({file.resolve() for file in files}) != len(files):
        raise BenchmarkError("--prompts names a file twice")
    stems = [file.stem for file in files]
    return stems if len(set(stems)) == len(stems) else [str(file) for file in files]


def read_rows(file: Path, limit: int = 0) -> list[tuple[str, Messages]]:
    """`(file:line, messages)` of the first `limit` rows (0: all); empty lines are not rows."""
    rows: list[tuple[str, Messages]] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if limit and len(rows) == limit:
            break
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BenchmarkError(f"{where} is not JSON: {error}") from error
        rows.append((where, conversation(row, where)))
    return rows


def conversation(row: object, where: str) -> Messages:
    """The messages that a row asks the model to answer. Raises `BenchmarkError`."""
    if isinstance(row, dict):
        if "messages" in row:
            return _checked_messages(row["messages"], where)
        turns = row.get("turns")
        texts = [turns[0] if isinstance(turns, list) and turns else None]
        texts += [row.get("prompt"), row.get("question")]
        text = next((text for text in texts if isinstance(text, str) and text), None)
        if text is not None:
            return [{"role": "user", "content": text}]
    raise BenchmarkError(
        f'{where} is not a prompt: expected an object with "messages", "turns", "prompt" or '
        '"question"'
    )


def encode(tokenizer: Any, messages: Messages, where: str) -> list[int]:
    """Ids of a conversation with the generation prompt; plain text where there is no template."""
    if not tokenizer.chat_template:
        text = "\n".join(message["content"] for message in messages)
        return list(tokenizer(text)["input_ids"])
    try:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise BenchmarkError(f"{where} is refused by the chat template: {error}") from error
    return list(ids)


def _checked_messages(messages: object, where: str) -> Messages:
    complaint = f'{where}: "messages" must be a list of {{"role": "...", "content": "..."}}'
    if not isinstance(messages, list):
        raise BenchmarkError(complaint)
    checked: Messages = []
    for message in messages:
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, dict) else (0, 0)
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise BenchmarkError(complaint)
        checked.append({"role": role, "content": content})
    if checked and checked[-1]["role"] == "assistant":
        checked.pop()
    if not checked:
        raise BenchmarkError(f"{where} has no message for the model to answer")
    return checked
