"""Flags come from the command line, a file and the environment, in this order, by one parser."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from server import cli
from server.arguments import add_arguments, token_count
from server.settings import SettingsError
from server.sources import parse_flags
from server.vllm_flags import FINE, REFUSED


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FALCON_")]:
        monkeypatch.delenv(name)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="falcon serve", allow_abbrev=False)
    add_arguments(parser)
    return parse_flags(parser, words)


def config(tmp_path: Path, text: str) -> str:
    file = tmp_path / "falcon.yaml"
    file.write_text(text)
    return str(file)


def all_flags() -> list[str]:
    """Every name that a flag has in the file, without those that are only refused."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = {a.option_strings[0] for a in parser._actions if a.option_strings and a.dest != "help"}
    return ["model", *sorted(flag.removeprefix("--") for flag in flags)]


def test_the_command_line_wins_over_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (parse().port, parse().max_num_seqs, parse().threads) == (8000, 8, 0)
    for name in ("PORT", "MAX_NUM_SEQS", "THREADS"):
        monkeypatch.setenv(f"FALCON_{name}", "1")
    file = config(tmp_path, "port: 2\nmax-num-seqs: 2\n")
    args = parse("--config", file, "--port", "3")
    assert (args.port, args.max_num_seqs, args.threads) == (3, 2, 1)


def test_the_file_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FALCON_CONFIG", config(tmp_path, "port: 2"))
    assert parse().port == 2


VALUES: dict[str, tuple[str, Any]] = {
    "model": ("DIR", "DIR"),
    "served-model-name": ("[a, b]", ["a", "b"]),
    "served_model_name": ("a", ["a"]),
    "max-model-len": ("32k", 32_000),
    "dtype": ("half", "float16"),
    "speculation": ("off", "off"),
    "strict-params": ("true", True),
    "deterministic": ("off", False),
    "queue-timeout": ("1.5", 1.5),
    "api-key": ("[sk-a, sk-b]", ["sk-a", "sk-b"]),
    "spec-model": ("DIR", "DIR"),
    "chat-template": ("-x.jinja", "-x.jinja"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_every_kind_are_read_from_both(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = VALUES[name]
    dest = {"spec-model": "drafter"}.get(name, name).replace("-", "_")
    assert getattr(parse("--config", config(tmp_path, f"{name}: {text}")), dest) == value
    variable = "FALCON_" + name.replace("-", "_").upper()
    monkeypatch.setenv(variable, text.strip("[]"))
    assert getattr(parse(), dest) == value


def test_a_nested_value_is_json_on_the_command_line(tmp_path: Path) -> None:
    text = "speculative-config:\n  method: falcon\n  model: DIR\n"
    args = parse("--config", config(tmp_path, text))
    assert json.loads(args.speculative_config) == {"method": "falcon", "model": "DIR"}


def test_empty_values_and_files_change_nothing(tmp_path: Path) -> None:
    assert parse("--config", config(tmp_path, "")).port == 8000
    assert parse("--config", config(tmp_path, "port:\nserved-model-name: []\n")).port == 8000


def test_a_switch_of_the_file_can_be_turned_off_by_the_command_line(tmp_path: Path) -> None:
    file = config(tmp_path, "strict-params: yes\n")
    assert parse("--config", file).strict_params is True
    assert parse("--config", file, "--no-strict-params").strict_params is False


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prot: 1", "unknown flag 'prot'; did you mean port?"),
        ("zzz: 1", "unknown flag 'zzz': known are .*max_num_seqs"),
        ("config: other.yaml", "unknown flag 'config'"),
        ("port: many", "'port': invalid int value: 'many'"),
        ("strict-params: maybe", "'strict-params': write true or false"),
        ("speculation: sometimes", "'speculation': invalid choice"),
        ("max-model-len: 3x", "'max-model-len': '3x' is no number of tokens"),
        ("pipeline-parallel-size: 2", "'pipeline-parallel-size': not yet: set --tensor-parallel"),
        ("trust_remote_code: true", "'trust_remote_code': never: no code"),
        ("[1, 2]", "one 'flag: value' a line"),
        ("port: [", "no YAML, line 1"),
        ("a: b: sk-secret", "no YAML, line 1: write one 'flag: value' a line$"),
    ],
)
def test_a_file_that_is_wrong_is_told_by_place(tmp_path: Path, text: str, complaint: str) -> None:
    file = config(tmp_path, text)
    with pytest.raises(SettingsError, match=rf"{file}.*{complaint}"):
        parse("--config", file)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(SettingsError, match="/no/such cannot be read"):
        parse("--config", "/no/such")


def test_a_variable_that_is_wrong_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALCON_MAX_NUM_SEQS", "x")
    with pytest.raises(SettingsError, match="FALCON_MAX_NUM_SEQS: invalid int value: 'x'"):
        parse()


def test_variables_of_kubernetes_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "PORT_8000_TCP", "SERVICE_PORT_HTTP"):
        monkeypatch.setenv(f"FALCON_{name}", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("FALCON_SERVICE_HOST", "10.0.0.1")
    args = parse()
    assert (args.port, args.unknown_variables) == (8000, [])


def test_variables_that_may_be_misspelled_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALCON_MAX_NUM_SEQ", "4")
    assert parse().unknown_variables == ["FALCON_MAX_NUM_SEQ"]


def test_keys_are_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALCON_API_KEY", "sk-a, sk-b sk-c")
    assert parse().api_key == ["sk-a", "sk-b", "sk-c"]
    assert "FALCON_API_KEY" not in os.environ


@pytest.mark.parametrize("name", all_flags())
def test_every_flag_can_be_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "config":
        return
    variable = "FALCON_" + name.replace("-", "_").upper()
    monkeypatch.setenv(variable, "1")
    assert variable not in parse_or_complain()


def parse_or_complain() -> list[str]:
    """The variables that are no flags; a complaint of a value knows its flag."""
    try:
        unknown: list[str] = parse().unknown_variables
    except SettingsError:
        return []
    return unknown


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        *[("auto", 0), ("-1", 0), ("0", 0), ("8192", 8192), ("32k", 32_000), ("32K", 32_768)],
        *[("1.5k", 1500), ("1m", 10**6), ("1M", 2**20)],
    ],
)
def test_numbers_of_tokens_are_written_as_in_vllm(text: str, tokens: int) -> None:
    assert parse("--max-model-len", text).max_model_len == tokens


@pytest.mark.parametrize("text", ["", "k", "-2", "1g k", "1_000", "1e3", "٣", "nan"])
def test_other_words_are_no_numbers_of_tokens(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="32k"):
        token_count(text)


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.flags[0])
def test_flags_of_vllm_that_cannot_be_honoured_say_what_to_write(
    refused: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in refused.flags:
        words = [flag] if refused.fine is None else [flag, "other"]
        with pytest.raises(SystemExit) as ended:
            parse(*words)
        assert ended.value.code == 2
        assert f"{' '.join(words)}: {refused.advice}" in capsys.readouterr().err
        for value in refused.fine or ():
            assert parse(flag, value).port == 8000


@pytest.mark.parametrize("flag", FINE)
def test_flags_of_vllm_that_ask_for_what_is_are_taken(flag: str) -> None:
    assert parse(flag, "MODEL").model == "MODEL"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--max-num-seq", "4"], "unknown flag --max-num-seq; did you mean --max-num-seqs?"),
        (["--api-keys=sk-secret"], "unknown flag --api-keys; did you mean --api-key?"),
        (["--api-keys", "sk-secret"], "unknown flag --api-keys; did you mean --api-key?"),
        (["M", "sk-secret"], "more than one MODEL"),
        (["--zzzzzzzz"], "unknown flag --zzzzzzzz\n"),
    ],
)
def test_unknown_flags_are_named_without_their_values(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse("MODEL", *words)
    err = capsys.readouterr().err
    assert told in err
    assert "sk-secret" not in err


def test_help_shows_all_groups_and_no_refused_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    out = capsys.readouterr().out
    for group in ("model", "speculation", "engine", "address", "access", "requests", "times"):
        assert f"\n{group}" in out
    assert "--pipeline-parallel-size" not in out
    assert "FALCON_MAX_NUM_SEQS" in out


def test_a_wrong_file_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--config", config(tmp_path, "prot: 1")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
