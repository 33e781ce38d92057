"""A tokenizer of single characters with a chat template, for targets that tests make themselves."""

from __future__ import annotations

import string
from pathlib import Path

from fakes import save_random_target
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

SPECIAL = ["<bos>", "<end>", "<user>", "<assistant>"]
VOCABULARY = {token: id for id, token in enumerate([*SPECIAL, *string.ascii_lowercase, " ", "\n"])}
TEMPLATE = (
    "<bos>{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Lower-case letters, space and line feed, one id each."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<end>",
        pad_token="<end>",
        chat_template=template,
    )


def save_chat_target(folder: Path, context: int = 128) -> Path:
    """A random llama (hidden 32, two layers) with that tokenizer."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=1,
    )
    save_random_target(config, folder)
    make_tokenizer().save_pretrained(folder)
    return folder
