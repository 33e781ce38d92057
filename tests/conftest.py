"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import save_random_target
from hypothesis import HealthCheck, settings
from transformers import LlamaConfig

# How fast an example runs says how busy the machine is, not whether the property holds.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer llama with 64 tokens and grouped queries."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    return save_random_target(config, tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafters that are loaded from here on multiply exactly, whatever this CPU packs."""
    monkeypatch.setattr("engine.packing.can_round", lambda layer: False)
