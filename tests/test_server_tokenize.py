"""Text to token ids and back over HTTP, and the health that SageMaker asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from server.settings import Limits
from tests.server_harness import CONTEXT, SPECIALS, Running, build_model_folder, running_server
from tests.tool_chat import TOOLS, build_tool_folder

CANARY = "canary7f3a"
TEXT = "<|user|>hello é漢 world"
USER = [{"role": "user", "content": "hello <|end|> world"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running_server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def tokenize(server: Running, **fields: Any) -> dict[str, Any]:
    answer = server.post(fields, "/tokenize")
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def detokenize(server: Running, tokens: list[int]) -> str:
    answer = server.post({"tokens": tokens}, "/detokenize")
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"prompt"}
    text: str = answer.json()["prompt"]
    return text


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert CANARY not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_text_becomes_its_ids(server: Running, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT).ids
    expected = {"count": len(ids), "max_model_len": CONTEXT, "tokens": ids}
    assert tokenize(server, prompt=TEXT) == expected
    assert tokenize(server, prompt=TEXT, model="tiny", return_token_strs=False) == expected
    named = tokenize(server, prompt=TEXT, return_token_strs=True)
    assert named == expected | {"token_strs": tokenizer.encode(TEXT).tokens}
    assert ids[0] == SPECIALS.index("<|user|>")


def test_ids_become_their_text_again(server: Running) -> None:
    for text in (TEXT, "", "漢" * 2000, "".join(SPECIALS)):
        assert detokenize(server, tokenize(server, prompt=text)["tokens"]) == text


def test_messages_become_the_prompt_that_a_chat_would_have(server: Running) -> None:
    """The end that a user writes is text, not the end of the message."""
    reply = tokenize(server, messages=USER)
    chat = server.post({"model": "tiny", "messages": USER}).json()
    assert reply["count"] == len(reply["tokens"]) == chat["usage"]["prompt_tokens"]
    rendered = "<|bos|><|user|>hello <|end|> world<|end|><|assistant|>"
    assert detokenize(server, reply["tokens"]) == rendered
    specials = [token for token in reply["tokens"] if token < len(SPECIALS)]
    assert [SPECIALS[token] for token in specials] == [
        "<|bos|>",
        "<|user|>",
        "<|end|>",
        "<|assistant|>",
    ]
    assert tokenize(server, messages=USER, add_generation_prompt=True) == reply
    without = tokenize(server, messages=USER, add_generation_prompt=False)
    assert without["tokens"] == reply["tokens"][:-1]


def test_tools_and_variables_count_as_they_do_in_a_chat(tmp_path: Path) -> None:
    with running_server(build_tool_folder(tmp_path / "m"), model_len=2048) as server:
        fields = {"messages": USER, "tools": TOOLS, "chat_template_kwargs": {"thinks": True}}
        chat = server.post({"model": "tiny", **fields}).json()
        assert tokenize(server, **fields)["count"] == chat["usage"]["prompt_tokens"]
        assert tokenize(server, messages=USER)["count"] < chat["usage"]["prompt_tokens"]
        continued = [*USER, {"role": "assistant", "content": "I th"}]
        reply = tokenize(server, messages=continued, continue_final_message=True)
        assert detokenize(server, reply["tokens"]).endswith("<|assistant|>I th")
        orphan = {"role": "tool", "content": "x", "tool_call_id": "c"}
        error = error_of(server.post({"messages": [orphan]}, "/tokenize"), 400)
        assert error["param"] == "messages.0.tool_call_id"


def test_a_bos_is_added_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "m")
    definition = json.loads((folder / "tokenizer.json").read_text())
    processor = {"type": "BertProcessing", "sep": ["<|end|>", 1], "cls": ["<|bos|>", 0]}
    (folder / "tokenizer.json").write_text(json.dumps(definition | {"post_processor": processor}))
    with running_server(folder) as server:
        plain = tokenize(server, prompt="hi", add_special_tokens=False)["tokens"]
        assert tokenize(server, prompt="hi")["tokens"] == [0, *plain, 1]
        assert tokenize(server, messages=USER)["tokens"].count(0) == 1


def test_more_than_the_context_is_still_counted(server: Running) -> None:
    assert tokenize(server, prompt="漢" * 10_000)["count"] == 30_000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "hi", "messages": USER}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["hi"]}, "prompt"),
        ({"prompt": "hi", "add_special_tokens": 1}, "add_special_tokens"),
        ({"prompt": "hi", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": "hi", "return_token_strs": "yes"}, "return_token_strs"),
        ({"messages": []}, "messages"),
        ({"messages": USER * 513}, "messages"),
        ({"messages": [{"role": CANARY, "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
        ({"messages": USER, "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": USER, "chat_template": CANARY}, "chat_template"),
        ({"messages": USER, "continue_final_message": True}, "continue_final_message"),
        ({"prompt": "hi", "model": 5}, "model"),
    ],
)
def test_what_cannot_be_tokenised_is_400_and_named(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    error = error_of(server.post(fields, "/tokenize"), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "tokens"),
        ({"tokens": None}, "tokens"),
        ({"tokens": CANARY}, "tokens"),
        ({"tokens": 5}, "tokens"),
        ({"tokens": [5, CANARY]}, "tokens.1"),
        ({"tokens": [True]}, "tokens.0"),
        ({"tokens": [5.0]}, "tokens.0"),
        ({"tokens": [[5]]}, "tokens.0"),
        ({"tokens": [-1]}, "tokens.0"),
        ({"tokens": [320]}, "tokens"),
        ({"tokens": [2**64 - 1]}, "tokens"),
        ({"tokens": [2**64]}, "tokens.0"),
    ],
)
def test_what_cannot_be_detokenised_is_400_and_named(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    error = error_of(server.post(fields, "/detokenize"), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_other_models_and_unknown_parameters_are_told(
    folder: Path, server: Running, path: str
) -> None:
    body = {"prompt": "hi"} if path == "/tokenize" else {"tokens": [5]}
    error = error_of(server.post(body | {"model": CANARY}, path), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    answer = server.post(body | {"frobnicate": 1, "user": "u"}, path)
    assert answer.headers["x-falcon-ignored-params"] == "frobnicate"
    error_of(server.get(path), 405)
    with running_server(folder, limits=Limits(strict_params=True)) as strict:
        assert error_of(strict.post(body | {"frob": 1}, path), 400)["param"] == "frob"


def test_a_model_without_a_template_still_tokenises_texts(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{}")
    with running_server(folder) as server:
        assert tokenize(server, prompt="hi")["count"] > 0
        error = error_of(server.post({"messages": USER}, "/tokenize"), 400)
        assert (error["param"], "no chat template" in error["message"]) == ("messages", True)


def test_ping_is_health_by_either_method(
    folder: Path, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in (server.get("/ping"), server.client.post("/ping"), server.get("/health")):
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    monkeypatch.setattr("engine.client.EngineClient.status", "given up")
    for answer in (server.get("/ping"), server.client.post("/ping")):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
    assert tokenize(server, prompt="hi")["count"] > 0, "tokens need no engine"
