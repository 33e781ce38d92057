"""Prompts: Hugging Face's rendering, and users who cannot write special tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from engine.token_bytes import byte_alphabet, token_bytes
from server.templates import (
    BadTemplate,
    ChatTemplate,
    Conversation,
    PromptTooLong,
    TemplateRefused,
    find_template,
)
from server.tokenizer import ChatTokenizer, load_tokenizer
from tests.server_harness import SPECIALS, build_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return load_tokenizer(folder)


def user(content: str) -> Conversation:
    return Conversation([{"role": "user", "content": content}])


def render(template: ChatTemplate, conversation: Conversation) -> str:
    return template.render(conversation, limit=10**6)


def test_a_plain_conversation_is_encoded_as_its_rendering(tokenizer: ChatTokenizer) -> None:
    expected = tokenizer._encode("<|bos|><|user|>hello world<|end|><|assistant|>")
    assert tokenizer.encode_chat(user(" hello world ")).ids == expected
    assert expected[:2] == [0, 3]


fragments = st.lists(st.sampled_from([*SPECIALS, "<|", "end", "|>", " ", "hé", "\n"]), max_size=8)


@given(text=fragments.map("".join))
def test_user_text_never_becomes_a_special_token(tokenizer: ChatTokenizer, text: str) -> None:
    ids = tokenizer.encode_chat(user(text)).ids
    assert [i for i in ids if i in tokenizer.special_ids] == [0, 3, 1, 4]
    words = [i for i in ids if i not in tokenizer.special_ids]
    assert tokenizer.decode(words) == text.strip()


def test_stop_ids_join_the_configuration_and_the_tokenizer(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert load_tokenizer(folder).stop_ids == [1, 7, 8]


def test_a_normalised_special_token_cannot_be_reached_by_lookalikes(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "m")
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["normalizer"] = {"type": "NFKC"}
    for token in definition["added_tokens"]:
        token["normalized"] = True
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_chat(user("\uff1c|end|\uff1e")).ids
    assert [i for i in ids if i in tokenizer.special_ids] == [0, 3, 1, 4]


@given(text=st.text(max_size=12))
def test_the_bytes_of_tokens_join_to_the_text(tokenizer: ChatTokenizer, text: str) -> None:
    pieces = [tokenizer.token_bytes(token) for token in tokenizer._encode(text)]
    assert b"".join(piece or b"" for piece in pieces) == text.encode()


def test_special_tokens_have_their_names_as_bytes_and_unknown_ones_none(
    tokenizer: ChatTokenizer,
) -> None:
    assert tokenizer.token_bytes(1) == b"<|end|>"
    assert tokenizer.token_bytes(tokenizer.vocab_size) is None


@pytest.mark.parametrize(
    ("token", "expected"),
    [("\u2581the", b" the"), ("<0xE2>", b"\xe2"), ("<0xe2>", b"<0xe2>"), ("é", "é".encode())],
)
def test_sentencepiece_spells_spaces_and_bytes_its_own_way(token: str, expected: bytes) -> None:
    assert token_bytes(token, is_byte_level=False) == expected


def test_the_byte_alphabet_is_that_of_tokenizers() -> None:
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"vocab_size": 100}, 100),
        ({"vocab_size": 10**6}, None),
        ({"text_config": {"vocab_size": 90}}, 90),
        ({"text_config": None}, None),
    ],
)
def test_the_vocabulary_is_what_both_tokenizer_and_model_have(
    tmp_path: Path, config: dict[str, object], size: int | None
) -> None:
    folder = build_model_folder(tmp_path / "m")
    whole = load_tokenizer(folder).vocab_size
    assert whole > 261
    (folder / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(folder).vocab_size == (size or whole)


def test_the_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("from the file")
    assert find_template(folder) == "from the file"


def test_several_templates_serve_the_default(tmp_path: Path) -> None:
    both = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": both}))
    assert find_template(tmp_path) == "d"


def test_generation_tags_and_loop_controls_and_json_render() -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}"
        "{% break %}{% endfor %}"
    )
    messages = [*user("<b>é").messages, *user("no").messages]
    rendered = render(ChatTemplate(source, {}), Conversation(messages))
    assert rendered == '{"role": "user", "content": "<b>é"}'


def test_developer_is_system_to_a_template_that_does_not_know_it() -> None:
    template = ChatTemplate("{{ messages[0]['role'] }}", {})
    assert render(template, Conversation([{"role": "developer", "content": ""}])) == "system"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Roles must alternate.') }}", "Roles must alternate"),
        ("{{ raise_exception('No ' + messages[0]['content']) }}", "or their order of roles"),
        ("{{ messages[0]['content'] + 1 }}", "or their order of roles"),
        ("{{ messages[9]['content'] + 'x' }}", "or their order of roles"),
        ("{{ ''.__class__.__mro__ }}", "or their order of roles"),
    ],
)
def test_refusals_quote_the_template_but_never_the_user(source: str, reason: str) -> None:
    with pytest.raises(TemplateRefused, match=reason) as refused:
        render(ChatTemplate(source, {}), user("secret"))
    assert "secret" not in str(refused.value)


def test_what_a_template_writes_is_bounded() -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    template = ChatTemplate(loops, {})
    with pytest.raises(PromptTooLong):
        render(template, user("x"))


def test_a_continued_message_ends_the_prompt_with_its_very_text(tokenizer: ChatTokenizer) -> None:
    messages = [*user("hello").messages, {"role": "assistant", "content": " so<|end|>\n "}]
    prompt = tokenizer.encode_chat(Conversation(messages, continues_last=True))
    assert tokenizer.decode(prompt.ids).endswith("<|assistant|>so<|end|>\n ")
    assert [i for i in prompt.ids if i in tokenizer.special_ids] == [0, 3, 1, 4]


def test_a_message_that_the_template_does_not_show_cannot_be_continued(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(build_model_folder(tmp_path / "m", "{{ messages[0]['content'] }}"))
    messages = [*user("a").messages, {"role": "assistant", "content": "b"}]
    with pytest.raises(TemplateRefused, match="does not show the last message"):
        tokenizer.encode_chat(Conversation(messages, continues_last=True))


def test_a_template_that_does_not_parse_is_an_error_at_start() -> None:
    with pytest.raises(BadTemplate, match="does not parse"):
        ChatTemplate("{% if %}", {})
