"""HTTP's share, on a tiny random pair behind a server of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import save_random_drafter
from tiny_chat import save_chat_target

from benchmarks.own_server import own_server
from benchmarks.settings import BenchmarkError
from benchmarks.transport import main


def test_both_ways_answer_every_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save_chat_target(tmp_path / "target", context=512)
    drafter = save_random_drafter(target, tmp_path / "drafter")
    prompts = tmp_path / "prompts.jsonl"
    rows = ["one two three", "four five", "six " * 600]  # the last one leaves no room
    prompts.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    models = ["--model", str(target), "--drafter", str(drafter), "--prompts", str(prompts)]
    limits = ["--max-tokens", "12", "--repeats", "2", "--threads", "1", "--dtype", "float32"]
    assert main([*models, *limits]) == 0
    output = capsys.readouterr().out
    inside, http = json.loads(output.splitlines()[-1])["ways"]
    assert inside["tokens"] == http["tokens"]
    assert len(inside["tokens"]) == len(http["seconds"]) == 2 * 2
    assert all(0 < count <= 12 for count in inside["tokens"])
    assert "over HTTP" in output


def test_one_prompt_is_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save_chat_target(tmp_path / "target")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "one"}) + "\n")
    options = ["--model", str(target), "--prompts", str(prompts), "--max-tokens", "8"]
    assert main([*options, "--dtype", "float32"]) == 2
    assert "at least two must fit" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match=r"did not start.*no config\.json"),
        own_server(str(tmp_path)),
    ):
        pass
