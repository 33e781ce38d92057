"""`falcon train`: it learns, it goes on bit for bit where it stopped, it refuses what is wrong."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_chat import save_chat_target
from transformers import AutoModelForCausalLM

from drafter.checkpoint import check_fit, load_drafter, target_fingerprint
from drafter.command import add_arguments, run
from drafter.config import DrafterConfig, DrafterError
from drafter.curves import read_log
from drafter.data import digest, read_rows, split_heldout, tokenize_rows
from drafter.evaluation import summarize
from drafter.progress import RunIdentity
from drafter.regenerate import RegenerateSettings, read_regenerated, regenerate
from drafter.run import stopping_signals
from drafter.settings import TrainingSettings, learning_rate_at
from drafter.target import FrozenTarget, load_frozen_target, target_parts
from drafter.training import Trainer

CPU = torch.device("cpu")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def target(folder: Path) -> FrozenTarget:
    return load_frozen_target(folder, CPU)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": word, "response": f"{word} comes before the next"} for word in WORDS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make_trainer(target: FrozenTarget, data: Path, out: Path, **changes: Any) -> Trainer:
    settings = TrainingSettings(
        **{"steps": 6, "batch_tokens": 128, "log_every": 1, "eval_every": 3, **changes}
    )
    examples = tokenize_rows(read_rows([data]), target.tokenizer, target.end_ids, 64)
    training, heldout = split_heldout(examples, 0.2, 200, settings.seed)
    config = DrafterConfig(
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        fingerprint=target.fingerprint,
    )
    identity = RunIdentity(
        settings=settings, drafter=config, data=digest(training), heldout=digest(heldout)
    )
    return Trainer(target, training, heldout, identity, out)


def command(folder: Path, data: Path, out: Path, *options: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    always = ["--target", folder, "--data", data, "--out", out]
    sizes = ["--max-length", "64", "--batch-tokens", "256", "--device", "cpu", *options]
    return run(parser.parse_args([*map(str, always), *sizes]))


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "elapsed"}


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    target: FrozenTarget, data: Path, tmp_path: Path
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert make_trainer(target, data, whole).train()
    first = make_trainer(target, data, parted)

    def stop_after_three(progress: float) -> None:
        first.is_stopping = first.state.step == 3

    first.on_step = stop_after_three
    assert not first.train()
    second = make_trainer(target, data, parted)
    assert second.resume()
    assert second.train()
    one, other = (load_file(out / "model.safetensors") for out in (whole, parted))
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = [[without_times(record) for record in read_log(out)] for out in (whole, parted)]
    assert logs[0] == logs[1]


def test_records_after_the_checkpoint_are_forgotten_on_resume(
    target: FrozenTarget, data: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(target, data, tmp_path, save_every=4)
    save, trainer.save = trainer.save, lambda: save() if trainer.state.step == 4 else None  # type: ignore[method-assign]  # a crash before the last save
    trainer.train()
    resumed = make_trainer(target, data, tmp_path)
    assert resumed.resume()
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 3, 4]


def test_resume_names_the_settings_that_changed(
    target: FrozenTarget, data: Path, tmp_path: Path
) -> None:
    make_trainer(target, data, tmp_path, steps=1).train()
    other = make_trainer(target, data, tmp_path, steps=1, learning_rate=0.1, save_every=7)
    with pytest.raises(DrafterError, match=r"changed: learning_rate: checkpoint 0.0003, asked 0.1"):
        other.resume()


def test_a_drafter_learns_what_its_target_says(
    target: FrozenTarget, data: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        target, data, tmp_path, steps=220, learning_rate=1e-2, token_weight=1.0, log_every=50,
        eval_every=1000, noise=0.01, batch_tokens=512,
    )  # fmt: skip
    settings = RegenerateSettings(max_new_tokens=24, max_length=64)
    file = tmp_path / "regenerated.jsonl"
    trainer.training = regenerate(target, trainer.training, settings, file, "")
    trainer.heldout = trainer.training
    trainer.train()
    assert trainer.last_evaluation is not None
    assert trainer.last_evaluation.acceptance[0] > 0.9
    assert trainer.last_evaluation.tau_block > 2.5


def test_a_run_can_begin_with_the_weights_of_another(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    first, second, third = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    assert command(folder, data, first, "--steps", "2") == 0
    init = ["--init", str(first)]
    assert command(folder, data, second, "--steps", "1", "--learning-rate", "1e-30", *init) == 0
    one, other = load_drafter(first).state_dict(), load_drafter(second).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert command(folder, data, third, "--steps", "1", "--block-size", "3", *init) == 2


def test_coupled_slots_can_begin_with_the_weights_of_an_eagle(
    folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    assert command(folder, data, first, "--method", "eagle", "--steps", "1") == 0
    init = ["--steps", "1", "--learning-rate", "1e-30", "--init", str(first)]
    assert command(folder, data, second, "--mixer", "linear", *init) == 0
    eagle, grown = load_drafter(first).state_dict(), load_drafter(second).state_dict()
    assert torch.equal(grown["coupling.query.weight"], eagle["layers.0.query.weight"].repeat(2, 1))
    assert all(torch.equal(grown[name], eagle[name]) for name in grown.keys() & eagle.keys())
    assert command(folder, data, third, *init) == 2
    told = capsys.readouterr().err
    assert "--init" in told
    assert "mixer: linear, asked lstm" in told
    assert command(folder, data, third, "--mixer", "linear", "--no-coupled", *init) == 2


def test_a_finished_run_leaves_a_drafter_that_fits_its_target(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command(folder, data, out, "--steps", "2", "--glance", "0", "--block-size", "3") == 0
    head = load_drafter(out)
    assert head.config.block_size == 3
    check_fit(head.config, 32, 32, target_fingerprint(folder))
    assert (out / "curves.png").stat().st_size > 0
    (record,) = [record for record in read_log(out) if record["kind"] == "eval"]
    assert len(record["acceptance"]) == len(record["hits"]) == 3


def test_regenerated_answers_are_the_targets_own(
    folder: Path, target: FrozenTarget, data: Path, tmp_path: Path
) -> None:
    options = ("--steps", "1", "--regenerate", "--regenerate-tokens", "12")
    assert command(folder, data, tmp_path, *options) == 0
    examples = read_regenerated(tmp_path / "regenerated.jsonl")
    assert len(examples) == 9
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=target.dtype)
    for example in examples[:3]:
        ids = torch.from_numpy(example.ids).long()[None]
        picks = model(ids).logits.float()
        said = picks[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        short_of = (picks[0, :-1].amax(1) - said)[torch.from_numpy(example.is_answer[1:])]
        assert short_of.max() < 0.1  # bfloat16 may tip a near tie


def test_interrupted_regeneration_goes_on_behind_the_last_whole_batch(
    target: FrozenTarget, data: Path, tmp_path: Path
) -> None:
    examples = tokenize_rows(read_rows([data]), target.tokenizer, target.end_ids, 64)
    settings = RegenerateSettings(max_new_tokens=6, batch_size=4, temperature=1.0)
    file = tmp_path / "regenerated.jsonl"
    regenerate(target, examples, settings, file, "")
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:6]) + lines[6][:9])
    regenerate(target, examples, settings, file, "")
    assert file.read_bytes() == whole
    with pytest.raises(DrafterError, match="changed: seed"):
        regenerate(
            target,
            examples,
            RegenerateSettings(max_new_tokens=6, batch_size=4, temperature=1.0, seed=1),
            file,
            "",
        )


def test_mistakes_end_with_code_2_and_one_line(
    folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    used = tmp_path / "used"
    used.mkdir()
    (used / "log.jsonl").touch()
    mistakes = {
        "no usable row": (folder, empty, tmp_path / "a"),
        "holds another run": (folder, data, used),
        "no *.safetensors": (tmp_path, data, tmp_path / "b"),
        "block_size must be 1 to 4": (folder, data, tmp_path / "c", "--block-size", "9"),
        "block_size of 2 to 4, not 1": (
            folder,
            data,
            tmp_path / "f",
            "--block-size",
            "1",
            "--coupled",
        ),
        "takes no --coupled": (folder, data, tmp_path / "g", "--method", "eagle", "--coupled"),
        "learning_rate must be positive": (folder, data, tmp_path / "d", "--learning-rate", "0"),
        "context of 128": (folder, data, tmp_path / "e", "--max-length", "129"),
    }
    for reason, arguments in mistakes.items():
        assert command(*arguments) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("falcon train: ")
        assert reason in message


def test_sigterm_ends_the_run_after_the_step_under_way(
    target: FrozenTarget, data: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(target, data, tmp_path)
    trainer.on_step = lambda progress: signal.raise_signal(signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with stopping_signals(trainer):
        assert not trainer.train()
    assert trainer.state.step == 1
    assert make_trainer(target, data, tmp_path).resume()
    assert signal.getsignal(signal.SIGTERM) is before


def test_target_parts_are_the_targets_own_logits(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        features = model.get_decoder()(ids).last_hidden_state
        assert torch.equal(target_parts(model).head(features), model(ids).logits)
    model.config.final_logit_softcapping, model.config.logits_scaling = 5.0, 4.0
    capped = torch.tanh(model(ids).logits / 4 / 5) * 5
    torch.testing.assert_close(target_parts(model).head(features), capped)


def test_padding_does_not_change_features(target: FrozenTarget) -> None:
    ids = torch.arange(4, 14)[None]
    padded = torch.cat((ids, torch.zeros(1, 5, dtype=torch.long)), 1)
    torch.testing.assert_close(target.features(padded)[:, :10], target.features(ids))


def test_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    settings = TrainingSettings(learning_rate=1.0)
    assert learning_rate_at(0.015, settings) == pytest.approx(0.5)
    assert learning_rate_at(0.03, settings) == pytest.approx(1.0)
    assert learning_rate_at(1.0, settings) == pytest.approx(0.05)


def test_acceptance_of_a_slot_is_among_blocks_whose_earlier_slots_were_right() -> None:
    ranks = torch.tensor([[0, 0], [0, 1], [0, 8], [3, 0]])
    result = summarize(ranks, torch.zeros(3))
    assert result.acceptance == pytest.approx((3 / 4, 1 / 3))
    assert result.tau_block == pytest.approx(1 + 4 / 4)
    assert result.hits == ((0.75, 0.75, 1.0, 1.0), (0.5, 0.75, 0.75, 0.75))
