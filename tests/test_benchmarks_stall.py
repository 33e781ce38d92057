"""The stall benchmark on a tiny random pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import save_random_drafter
from tiny_chat import save_chat_target

from benchmarks.stall import main


def test_answers_run_on_while_the_prompt_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = save_chat_target(tmp_path / "target", context=1024)
    drafter = save_random_drafter(target, tmp_path / "drafter")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "one two three"}) + "\n")
    models = ["--model", str(target), "--drafter", str(drafter), "--prompts", str(prompts)]
    assert main([*models, "--dtype", "float32", "--streams", "2", "--fill", "0.6"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["stall"]
    assert (found["streams"], found["prompt_tokens"]) == (2, int(0.6 * 1024))
    most = found["chunk"] + found["step"] + 2e-6  # the document rounds to six decimals
    assert 0 < found["chunk"] < found["worst"] <= most
    assert found["first_token"] > found["worst"]  # several chunks, and the answers stepped between


@pytest.mark.parametrize("option", ["--streams=0", "--fill=1"])
def test_what_cannot_be_measured_is_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err
