"""Which addresses may be served to whom, as the command line says."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import SettingsError
from tests.server_harness import build_model_folder
from tests.test_server_command import settings

KEY = "sk-falcon-1234"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_model_folder(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_that_others_reach_needs_a_key(folder: str, host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="add --api-key-file FILE, or --allow-unauthenticated"):
        settings(folder, "--host", host)
    (tmp_path / "keys").write_text(KEY)
    for words in (["--api-key", KEY], ["--api-key-file", str(tmp_path / "keys")]):
        access = settings(folder, "--host", host, *words).access
        assert access.keys.admit(KEY)
        assert access.trusts_host
    access = settings(folder, "--host", host, "--allow-unauthenticated").access
    assert not access.keys.are_required
    assert access.trusts_host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3", "::1"])
def test_an_address_of_this_machine_alone_needs_none(folder: str, host: str) -> None:
    access = settings(folder, "--host", host).access
    assert not access.keys.are_required
    assert not access.trusts_host


@pytest.mark.parametrize("words", [["--api-key", "a b"], ["--api-key-file", "/no/such/file"]])
def test_keys_that_cannot_be_used_are_refused_and_not_told(folder: str, words: list[str]) -> None:
    with pytest.raises(SettingsError, match="--api-key") as refusal:
        settings(folder, *words)
    assert "a b" not in str(refusal.value)


def test_settings_show_no_key(folder: str) -> None:
    assert KEY not in repr(settings(folder, "--api-key", KEY))


@pytest.mark.parametrize("origin", ["chat.example.com", "https://", "https://a/b", "://a", "null"])
def test_an_origin_is_a_scheme_and_a_host(folder: str, origin: str) -> None:
    with pytest.raises(SettingsError, match="scheme://host"):
        settings(folder, "--allowed-origins", "https://a.example.com:8443", origin)
    words = ["--allowed-origins", "https://a.example.com:8443", "*"]
    assert settings(folder, *words).access.allowed_origins == (words[1], "*")
