"""A tiny target that writes bytes: a random llama with a byte-level tokenizer and spare ids."""

from __future__ import annotations

from pathlib import Path

from fakes import save_random_target
from transformers import LlamaConfig

from tests.server_harness import build_model_folder

VOCAB_SIZE = 352  # the tokenizer has some 290
END = 1


def save_text_target(folder: Path, context: int = 512) -> Path:
    """Hidden 32, two layers; every byte is a token, some English words and JSON pieces are too."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=END,
    )
    build_model_folder(folder)
    return save_random_target(config, folder)
