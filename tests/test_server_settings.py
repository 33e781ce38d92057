"""What is served, under which names, with which drafter, where: as the flags say, and for real."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from engine.config import NGrams
from server.settings import SettingsError
from tests.server_harness import PATIENCE, Running, build_model_folder, running_server
from tests.server_process import serving, start
from tests.test_server_command import settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


def test_a_model_may_have_several_names(folder: Path) -> None:
    made = settings(str(folder), "--served-model-name", "a", "b", "a")
    assert made.model_names == ("a", "b")
    with running_server(folder, names=made.model_names) as server:
        for name in ("a", "b"):
            assert server.post(server.chat() | {"model": name}).json()["model"] == name
            assert server.get(f"/v1/models/{name}").json()["id"] == name
        cards = server.get("/v1/models").json()["data"]
        assert [(card["id"], card["root"]) for card in cards] == [("a", "a"), ("b", "a")]
        missing = server.post(server.chat())
        assert missing.status_code == 404
        assert "'a', 'b'" in missing.json()["error"]["message"]


@pytest.mark.parametrize("flag", ["--served-model-name", "--api-key", "--allowed-origins"])
def test_a_model_that_a_flag_took_for_a_value_is_told(folder: Path, flag: str) -> None:
    with pytest.raises(SettingsError, match=f"{flag} took MODEL for a value"):
        settings(flag, "http://x", str(folder))
    settings(str(folder), flag, "http://x", "http://y")


def test_a_name_must_not_be_empty(folder: Path) -> None:
    with pytest.raises(SettingsError, match="--served-model-name"):
        settings(str(folder), "--served-model-name", "")


def test_the_drafter_has_three_spellings(folder: Path) -> None:
    config = json.dumps({"method": "falcon", "model": str(folder)})
    for words in (
        ["--drafter", str(folder)],
        ["--spec-model", str(folder)],
        ["--speculative-config", config],
        ["-sc", config],
        ["-sc", config, "--drafter", str(folder)],
        ["-sc", json.dumps({"model": str(folder)})],
    ):
        assert settings(str(folder), *words).engine.drafter == str(folder)


def test_prompt_lookup_can_be_left_out(folder: Path) -> None:
    assert settings(str(folder)).engine.prompt_lookup == NGrams()
    assert settings(str(folder), "--drafter", str(folder)).engine.prompt_lookup == NGrams()
    assert settings(str(folder), "--no-prompt-lookup").engine.prompt_lookup is None
    with pytest.raises(SettingsError, match="--no-prompt-lookup and method ngram"):
        settings(str(folder), "--no-prompt-lookup", "-sc", json.dumps({"method": "ngram"}))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("falcon", "write a JSON object such as"),
        ("[1]", "write a JSON object such as"),
        ({"method": "eagle3", "model": "DIR"}, "method 'eagle3': choose from falcon, ngram"),
        ({"method": ["ngram"]}, "choose from falcon, ngram"),
        ({"method": "ngram", "model": "DIR"}, "prompt lookup has no model"),
        ({"method": "ngram", "zzz": 1}, "'zzz': known with 'ngram' are method, prompt_lookup_max"),
        ({"method": "ngram", "prompt_lookup_max": 0}, "prompt_lookup_max 0: use 1 to 16"),
        ({"method": "ngram", "prompt_lookup_min": 17}, "prompt_lookup_min 17.*use 1 to 16"),
        (
            {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 3},
            "the first not above the second",
        ),
        ({"method": "ngram", "prompt_lookup_max": "3"}, r"`int`, got `str`.*prompt_lookup_max"),
        ({"method": "ngram", "prompt_lookup_min": True}, r"`int`, got `bool`.*prompt_lookup_min"),
        ({"method": "ngram", "num_speculative_tokens": 64}, "num_speculative_tokens 64: use 1 to"),
        ({"method": "ngram", "num_speculative_tokens": None}, r"num_speculative_tokens"),
        ({"prompt_lookup_max": 3, "model": "DIR"}, "known with 'falcon' are method, model"),
        ({"method": "falcon"}, "'model' must name the drafter's folder"),
        ({"model": 3}, "'model' must name the drafter's folder"),
        ({"model": "DIR", "num_speculative_tokens": 3}, "plan.json says what it drafts"),
        ({"model": "DIR", "draft_tensor_parallel_size": 1}, "leave it out"),
        ({"model": "DIR", "zzz": 1}, "'zzz': known with 'falcon' are method, model"),
        ({"model": "/no/such"}, "no drafter folder /no/such"),
    ],
)
def test_a_speculative_config_that_cannot_be_honoured_is_refused_by_name(
    folder: Path, config: Any, complaint: str
) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    with pytest.raises(SettingsError, match=complaint):
        settings(str(folder), "--speculative-config", text)


@pytest.mark.parametrize("config", [{"model": "b"}, {"method": "ngram"}])
def test_two_drafters_exclude_each_other(folder: Path, config: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="two drafters"):
        settings(str(folder), "--drafter", "a", "-sc", json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({}, (3, 1, 63)),
        ({"num_speculative_tokens": 8}, (3, 1, 8)),
        ({"prompt_lookup_max": 5, "prompt_lookup_min": 2}, (5, 2, 63)),
        ({"prompt_lookup_max": 1}, (1, 1, 63)),
        ({"prompt_lookup_min": 2}, (3, 2, 63)),
        ({"prompt_lookup_min": 4}, (4, 4, 63)),
    ],
)
def test_prompt_lookup_may_be_set_in_vllms_words(
    folder: Path, fields: dict[str, int], sizes: tuple[int, int, int]
) -> None:
    made = settings(str(folder), "-sc", json.dumps({"method": "ngram"} | fields)).engine
    assert made.drafter is None
    assert made.prompt_lookup is not None
    assert msgspec.structs.astuple(made.prompt_lookup) == sizes


@pytest.mark.parametrize(
    ("words", "said"), [([], "prompt lookup"), (["--speculation", "off"], "no speculation")]
)
def test_what_drafts_without_a_drafter_is_said_at_start(
    folder: Path, words: list[str], said: str
) -> None:
    with serving(folder, *words) as served:
        served.send_signal()
        _, out, _ = served.ended()
    assert f"drafter  none: {said}" in out


def test_without_speculation_nothing_may_be_named_to_draft(folder: Path) -> None:
    assert settings(str(folder), "--speculation", "off").engine.prompt_lookup is None
    with pytest.raises(SettingsError, match="leave one out"):
        settings(str(folder), "--speculation", "off", "-sc", '{"method": "ngram"}')


def test_another_chat_template_may_be_served(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("<|user|>my own template<|end|><|assistant|>")
    with serving(folder, "--chat-template", str(file)) as served:
        said = served.post("hello").json()["choices"][0]["message"]["content"]
    assert said == "echo:my own template"


def test_a_chat_template_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="--chat-template /no/such"):
        settings(str(folder), "--chat-template", "/no/such")


def test_a_chat_template_that_does_not_parse_is_one_clear_line(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jinja").write_text("{% if %}")
    process = start(str(folder), "--port", "0", "--chat-template", str(tmp_path / "bad.jinja"))
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err.count("\n")) == (2, 1)
    assert "does not parse" in err


def test_a_unix_socket_is_served_and_taken_away(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "falcon.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with serving(folder, "--uds", str(path), uds=path) as served:
        assert path.stat().st_mode & 0o777 == 0o660
        assert served.post("hello").status_code == 200
        second = start(str(folder), "--uds", str(path))
        _, err = second.communicate(timeout=PATIENCE)
        assert second.returncode == 2
        assert f"cannot listen on {path}" in err
        served.send_signal()
        status, out, _ = served.ended()
    assert (status, f"unix:{path}" in out) == (0, True)
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    process = start(str(folder), "--uds", str(tmp_path / "file"))
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "cannot listen" in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Certificate and key, for localhost."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("makes its certificate with openssl")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=x",
    ]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run([openssl, *words], check=True, capture_output=True)
    return cert, key


def test_tls_is_served(folder: Path, tls: tuple[str, str]) -> None:
    cert, key = tls
    words = ["--ssl-certfile", cert, "--ssl-keyfile", key]
    context = ssl.create_default_context(cafile=cert)
    with serving(folder, *words, verify=context) as served:
        assert served.url.startswith("https://")
        assert served.post("hello").status_code == 200


def test_tls_may_ask_for_a_clients_certificate(folder: Path, tls: tuple[str, str]) -> None:
    cert, key = tls
    words = ["--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certs", cert]
    context = ssl.create_default_context(cafile=cert)
    context.load_cert_chain(cert, key)
    with serving(folder, *words, verify=context) as served:
        stranger = ssl.create_default_context(cafile=cert)
        with httpx.Client(verify=stranger) as client, pytest.raises(httpx.TransportError):
            client.get(f"{served.url}/livez")
        assert served.get("/livez").status_code == 200


def test_tls_files_that_cannot_be_used_are_refused(
    folder: Path, tls: tuple[str, str], tmp_path: Path
) -> None:
    cert, key = tls
    for words in (
        ["--ssl-certfile", cert],
        ["--ssl-keyfile", key],
        ["--ssl-ca-certs", cert],
        ["--ssl-certfile", cert, "--ssl-keyfile", cert],
        ["--ssl-certfile", "/no/such", "--ssl-keyfile", key],
        ["--ssl-certfile", cert, "--ssl-keyfile", key, "--ssl-ca-certs", key],
    ):
        with pytest.raises(SettingsError, match="--ssl-keyfile"):
            settings(str(folder), *words)


def test_an_alias_is_the_label_of_no_metric(folder: Path) -> None:
    with running_server(folder, names=("tiny", "alias")) as server:
        ask(server, "alias")
        assert "alias" not in server.get("/metrics").text


def ask(server: Running, model: str) -> None:
    assert server.post(server.chat() | {"model": model}).status_code == 200
