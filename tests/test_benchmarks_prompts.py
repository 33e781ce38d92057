"""Prompt files: every usual row form is read, every other one is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.command import OWN_PROMPTS
from benchmarks.prompts import conversation, encode, load_prompts, read_rows, source_names
from benchmarks.settings import BenchmarkError

USER = {"role": "user", "content": "hi"}


class CharacterTokenizer:
    """One id a character; with a template, a prompt starts with `>`."""

    def __init__(self, chat_template: str | None = None) -> None:
        self.chat_template = chat_template

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> list[int]:
        return [ord(letter) for letter in ">" + messages[-1]["content"]]


def write_rows(file: Path, *rows: object) -> Path:
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return file


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER]},
        {"messages": [USER, {"role": "assistant", "content": "hello"}]},
        {"turns": ["hi", "and then?"], "category": "chat"},
        {"prompt": "hi", "canonical_solution": "x"},
        {"question": "hi", "answer": "x"},
    ],
)
def test_every_row_form_asks_the_same(row: dict[str, Any]) -> None:
    assert conversation(row, "f:1") == [USER]


@pytest.mark.parametrize(
    "row",
    [
        [],
        "hi",
        {},
        {"text": "hi"},
        {"prompt": ""},
        {"turns": []},
        {"turns": [3]},
        {"messages": "hi"},
        {"messages": []},
        {"messages": ["hi"]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"messages": [{"role": "assistant", "content": "hello"}]},
    ],
)
def test_any_other_row_is_refused_by_file_and_line(row: object, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(BenchmarkError, match=r"rows\.jsonl:2"):
        read_rows(file)


def test_broken_json_is_refused_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "fine"}\n\n{"prompt": \n')
    with pytest.raises(BenchmarkError, match=r"rows\.jsonl:3 is not JSON"):
        read_rows(file)


def test_limit_stops_before_later_rows(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "b"}, "bad")
    assert len(read_rows(file, limit=2)) == 2


def test_without_a_template_the_text_is_encoded() -> None:
    assert encode(CharacterTokenizer(), [USER], "f:1") == [ord("h"), ord("i")]
    assert encode(CharacterTokenizer("{{ x }}"), [USER], "f:1") == [ord(c) for c in ">hi"]


def test_prompts_that_do_not_fit_are_counted_not_cut(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", {"prompt": "abc"}, {"prompt": "abcd"})
    prompts = load_prompts([file], CharacterTokenizer(), longest=3)
    assert [len(prompt.ids) for prompt in prompts.prompts] == [3]
    assert (prompts.skipped, prompts.longest) == (1, 3)
    with pytest.raises(BenchmarkError, match="none of 2 prompts"):
        load_prompts([file], CharacterTokenizer(), longest=2)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"]
    assert source_names(files) == [str(file) for file in files]
    assert source_names(files[:1]) == ["rows"]
    with pytest.raises(BenchmarkError, match="twice"):
        source_names([files[0], files[0]])


def test_our_own_prompts_are_three_kinds_of_eight() -> None:
    rows = [json.loads(line) for line in OWN_PROMPTS.read_text().splitlines()]
    kinds = [row["category"] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "arithmetic": 8,
        "code": 8,
        "general": 8,
    }
    assert len(read_rows(OWN_PROMPTS)) == 24
