"""Rows become ids with the target's answers marked; batches are a function of seed and epoch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_chat import TEMPLATE, make_tokenizer

from drafter.config import DrafterError
from drafter.data import (
    Example,
    collate,
    digest,
    plan_batches,
    read_rows,
    split_heldout,
    tokenize_rows,
)

TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "ok"},
]


def make_example(length: int, start: int = 0) -> Example:
    return Example(np.arange(start, start + length, dtype=np.int32), np.arange(length) >= 2)


def texts(example: Example) -> tuple[str, str]:
    """The whole text, and that which is marked as an answer."""
    tokenizer = make_tokenizer()
    return tokenizer.decode(example.ids), tokenizer.decode(example.ids[example.is_answer])


def test_answers_are_marked_with_their_end_token_and_nothing_after_it() -> None:
    (example,) = tokenize_rows([TALK], make_tokenizer(), [1], 100)
    whole, answers = texts(example)
    assert whole == "<bos><user>hi<end>\n<assistant>yes<end>\n<user>more<end>\n<assistant>ok<end>\n"
    assert answers == "yes<end>ok<end>"


def test_without_a_chat_template_contents_are_joined_by_line_feeds() -> None:
    (example,) = tokenize_rows([TALK], make_tokenizer(None), [1], 100)
    assert texts(example) == ("<bos>hi\nyes\nmore\nok<end>", "yes\nok<end>")


def test_rows_are_cut_at_the_longest_length() -> None:
    (example,) = tokenize_rows([TALK], make_tokenizer(), [1], 8)
    assert texts(example)[1] == "y"


def test_rows_without_an_answer_in_range_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert tokenize_rows([TALK], make_tokenizer(), [1], 6) == []
    assert "1 rows left out: no answer within 6 tokens" in caplog.text


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}" + TEMPLATE,
        "{{ raise_exception('no') }}" + TEMPLATE,
    ],
    ids=["not a prefix", "refused"],
)
def test_rows_that_the_template_does_not_render_are_left_out_and_counted(
    template: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert tokenize_rows([TALK], make_tokenizer(template), [1], 100) == []
    assert "1 rows left out: the chat template" in caplog.text


def test_prompt_and_response_rows_are_conversations(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "hi", "response": "yes"}\n\n' + json.dumps({"messages": TALK}))
    assert list(read_rows([file])) == [TALK[:2], TALK]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", 'expected "messages"'),
        ('{"messages": []}', 'expected "messages"'),
        ('{"messages": [{"role": "user"}]}', "text `content`"),
        ('{"prompt": 1, "response": "x"}', "text `content`"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"prompt": "a", "response": "b"}}\n{line}\n')
    with pytest.raises(DrafterError) as caught:
        list(read_rows([file]))
    assert f"{file}:2: " in str(caught.value)
    assert reason in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DrafterError, match="cannot be read"):
        list(read_rows([tmp_path / "none.jsonl"]))


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 100).tolist()
    batches = plan_batches(lengths, 128, seed=1, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(100))
    assert all(len(batch) * max(lengths[index] for index in batch) <= 128 for batch in batches)


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    lengths = list(range(3, 60))
    assert plan_batches(lengths, 128, 1, 0) == plan_batches(lengths, 128, 1, 0)
    assert plan_batches(lengths, 128, 1, 0) != plan_batches(lengths, 128, 1, 1)
    assert plan_batches(lengths, 128, 1, 0) != plan_batches(lengths, 128, 2, 0)


def test_padding_is_no_answer() -> None:
    batch = collate([make_example(3), make_example(5)], torch.device("cpu"))
    assert batch.ids.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert batch.is_answer.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert batch.num_tokens == 8


def test_held_out_rows_are_a_fixed_share_that_is_not_trained_on() -> None:
    examples = [make_example(6, start) for start in range(50)]
    training, heldout = split_heldout(examples, 0.1, 200, seed=3)
    assert (len(training), len(heldout)) == (45, 5)
    assert {int(example.ids[0]) for example in training + heldout} == set(range(50))
    assert digest(heldout) == digest(split_heldout(examples, 0.1, 200, seed=3)[1])
    assert len(split_heldout(examples, 0.5, 3, seed=3)[1]) == 3
