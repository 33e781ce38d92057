"""The `falcon` command: settings, startup errors, signals, and no torch in the HTTP process."""

from __future__ import annotations

import argparse
import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engine.config import NGrams
from server import chat_command, cli
from server.arguments import add_arguments
from server.settings import Limits, Settings, SettingsError, demo_folder, settings_from
from tests.server_harness import PATIENCE, Running, build_model_folder, running_server
from tests.server_process import free_port, serving, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder) as running:
        yield running


def settings(*words: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return settings_from(parser.parse_args(words))


def test_a_model_alone_is_served_under_its_folders_name_by_prompt_lookup(folder: Path) -> None:
    made = settings(str(folder))
    assert (made.model_names, made.engine.drafter, made.address.port) == (("tiny",), None, 8000)
    assert made.engine.prompt_lookup == NGrams()


def test_limits_are_what_the_command_line_says(folder: Path) -> None:
    assert settings(str(folder)).limits == Limits(256, 60.0, 600.0, 60.0)
    words = "--max-num-queued-reqs 1 --queue-timeout 2 --request-timeout 0 --engine-timeout 4"
    assert settings(str(folder), *words.split()).limits == Limits(1, 2.0, 0.0, 4.0)


def test_without_a_model_the_demo_pair_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_model_folder(tmp_path / "target")
    monkeypatch.setattr("server.settings.demo_folder", lambda: tmp_path)
    made = settings()
    assert made.model_names == ("falcon-demo",)
    assert made.engine.model == str(tmp_path / "target")
    assert made.engine.drafter == str(tmp_path / "drafter")
    assert settings("--speculation", "off").engine.drafter is None
    assert settings("-sc", '{"method": "ngram"}').engine.drafter is None


def test_the_demo_lies_beside_the_packages() -> None:
    assert demo_folder() == Path(cli.__file__).parent.parent / "models" / "demo"


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["/no/such/folder"], "folder of a Hugging Face checkpoint"),
        (["MODEL", "--drafter", "/no/such"], "falcon train"),
        (["MODEL", "--drafter", "MODEL", "--speculation", "off"], "leave one out"),
        (["MODEL", "--port", "70000"], "1 to 65535"),
        (["MODEL", "--max-num-seqs", "0"], "at least 1"),
        (["MODEL", "-tp", "0"], "--tensor-parallel-size 0: use 1, or a number that divides"),
        (["MODEL", "--threads", "-1"], "positive number"),
        (["MODEL", "--max-num-queued-reqs", "-1"], "how many may"),
        (["MODEL", "--queue-timeout", "-1"], "0 or more seconds"),
        (["MODEL", "--request-timeout", "nan"], "0 or more seconds"),
        (["MODEL", "--engine-timeout", "0.5"], "1 or more seconds"),
        (["MODEL", "--otlp-traces-endpoint", "localhost:4317"], "http://HOST:PORT/v1/traces"),
    ],
)
def test_errors_say_what_to_write_instead(folder: Path, words: list[str], advice: str) -> None:
    with pytest.raises(SettingsError, match=advice):
        settings(*[str(folder) if word == "MODEL" else word for word in words])


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_that_misses_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (build_model_folder(tmp_path) / name).unlink()
    with pytest.raises(SettingsError, match=name):
        settings(str(tmp_path))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "x.pkl"])
def test_pickled_weights_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    folder = build_model_folder(tmp_path)
    (folder / name).touch()
    with pytest.raises(SettingsError, match=rf"{name}.*safetensors.*convert it"):
        settings(str(folder))
    (folder / "model.safetensors").touch()
    assert settings(str(folder)).engine.model == str(folder)


def test_a_folder_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path)
    code = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(code))
    with pytest.raises(SettingsError, match=r"no code of a model folder is ever run.*'llama'"):
        settings(str(folder))


def test_the_http_process_never_imports_torch_or_transformers_nor_traces_unasked() -> None:
    modules = "server.cli server.serve server.chat_command engine.client engine.wire"
    code = (
        f"import sys, importlib\nfor name in {modules.split()!r}: importlib.import_module(name)\n"
        "unwanted = {'torch', 'transformers', 'numpy', 'opentelemetry.sdk'} & set(sys.modules)\n"
        "sys.exit(' '.join(unwanted) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_taken_port_is_one_clear_line_and_status_2(folder: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        process = start(str(folder), "--port", str(sock.getsockname()[1]))
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.startswith("falcon serve: cannot listen on 127.0.0.1:")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("most", "allowed"), [(2048, "1536"), (300, "300")])
def test_as_many_files_may_be_open_as_connections_need(
    folder: Path, most: int, allowed: str
) -> None:
    few = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, {most}))"
    with serving(folder, plant=few) as served:
        limits = Path(f"/proc/{served.process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert line.split()[3] == allowed


def test_a_package_of_somebody_else_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli.foreign_package() is None
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "tree", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "dm-tree" in (cli.foreign_package() or "")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("words", [["nonsense"], ["--nonsense"]])
def test_unknown_commands_exit_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


def test_chat_asks_once(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--url", server.url, "hello"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "echo:hello\n"
    assert "tokens/s" in captured.err


def test_chat_remembers_the_conversation(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    sent: list[list[chat_command.Message]] = []
    real = chat_command._print_answer

    def spy(client: httpx.Client, body: dict[str, object]) -> str:
        sent.append(list(body["messages"]))  # type: ignore[call-overload]  # a list
        return real(client, body)

    monkeypatch.setattr(chat_command, "_print_answer", spy)
    assert cli.main(["chat", "--url", server.url, "--system", "s", "--temperature", "0"]) == 0
    assert [message["content"] for message in sent[-1]] == ["s", "one", "echo:one", "two"]
    assert "echo:two" in capsys.readouterr().out


def test_chat_without_a_server_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", "--url", f"http://127.0.0.1:{free_port()}", "x"]) == 1
    assert "falcon serve" in capsys.readouterr().err


def test_chat_shows_the_servers_own_words(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["chat", "--url", server.url, "--max-tokens", "9999", "x"]) == 1
    assert "maximum context length" in capsys.readouterr().err
