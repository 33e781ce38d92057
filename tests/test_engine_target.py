"""The target on our slots against stock Hugging Face eager attention, for many architectures."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import save_random_target
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from engine.config import EngineConfig
from engine.rows import Rows, TreeRows, causal_rows
from engine.target import Target, TargetError, Verdict, load_target
from tree.topology import Tree

TREE = Tree.from_paths([[0], [0, 0], [0, 0, 0], [1], [1, 0], [1, 0, 0], [0, 1], [2], [1, 1]])
PROMPT = torch.arange(3, 33)
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "mistral-window": MistralConfig(**SIZES, sliding_window=12),
    "gemma2": Gemma2Config(**SIZES, head_dim=16, sliding_window=12, query_pre_attn_scalar=16),
    "phi3": Phi3Config(**SIZES),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128),
}


def load(config: PretrainedConfig, folder: Path) -> Target:
    save_random_target(copy.deepcopy(config), folder)
    return load_target(EngineConfig(model=str(folder), dtype="float32", max_num_seqs=2))


def alone(slot: int, tree: TreeRows) -> Rows:
    """The tree's rows behind the prompt in `slot`."""
    return Rows([slot], [len(PROMPT)], tree.offsets[None], tree.visible[None])


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_tree_rows_equal_eager_attention_on_each_path(name: str, tmp_path: Path) -> None:
    target = load(ARCHITECTURES[name], tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.randint(0, 64, (TREE.num_nodes,), generator=torch.Generator().manual_seed(0))
    features = target.prefill(1, 0, PROMPT.tolist())
    rows = TreeRows.of(TREE, 16, target.device)
    ids = tokens[:1].repeat(len(rows.offsets))
    ids[: TREE.num_nodes] = tokens
    verdict = target.forward(ids, alone(1, rows))
    for node in range(TREE.num_nodes):
        path = [0, *TREE.path_to(node)]
        whole = torch.cat((PROMPT, tokens[path]))[None]
        expected = eager(whole, use_cache=False)
        last = eager.get_decoder()(whole, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(verdict.logits[node], expected.logits[0, -1], atol=1e-5, rtol=0)
        torch.testing.assert_close(verdict.features[node], last[-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(features, last[: len(PROMPT)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
@torch.inference_mode()
def test_the_chain_of_a_tree_stands_where_a_sequence_would(name: str, tmp_path: Path) -> None:
    target = load(ARCHITECTURES[name], tmp_path)
    tokens = torch.arange(20, 20 + TREE.num_nodes)
    target.prefill(0, 0, PROMPT.tolist())
    rows = TreeRows.of(TREE, 16, target.device)
    ids = tokens[:1].repeat(len(rows.offsets))
    ids[: TREE.num_nodes] = tokens
    verdict = target.forward(ids, alone(0, rows))
    chain = TREE.path_to(TREE.paths.index((0, 0, 0)))
    target.commit(0, len(PROMPT), verdict.features[: 1 + len(chain)])
    sequence = [*PROMPT.tolist(), *tokens[[0, *chain]].tolist()]
    target.prefill(1, 0, sequence)
    columns = target.slots.tensor[..., : len(sequence), :]
    torch.testing.assert_close(columns[:, :, 0], columns[:, :, 1], atol=1e-5, rtol=0)
    features = target.features[:, : len(sequence)]
    torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "cohere", "granite"])
@torch.inference_mode()
def test_the_head_alone_gives_the_models_logits(name: str, tmp_path: Path) -> None:
    """With the soft cap and the scaling that some models have behind it."""
    scaled = {
        "cohere": CohereConfig(**SIZES, logit_scale=0.25),
        "granite": GraniteConfig(**SIZES, logits_scaling=4.0),
    }
    target = load((ARCHITECTURES | scaled)[name], tmp_path)
    verdict = target.forward(PROMPT, causal_rows(0, 0, len(PROMPT), target.device))
    assert target.head is not None
    torch.testing.assert_close(target.head(verdict.features), verdict.logits, atol=1e-6, rtol=0)


def test_a_head_that_is_not_all_of_a_models_logits_is_not_used(tmp_path: Path) -> None:
    loaded = load(ARCHITECTURES["phi3"], tmp_path)  # runs through transformers
    loaded.model.register_forward_hook(lambda module, args, output: _scaled(output))
    target = Target(loaded.model, 2, 64)
    assert target.head is None


def _scaled(output: Any) -> Any:
    output.logits = output.logits * 1.01
    return output


@torch.inference_mode()
def test_prompts_of_all_lengths_are_few_numbers_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number has kernels of its own, which are made and kept when it first comes."""
    target = load(LlamaConfig(**(SIZES | {"max_position_embeddings": 320})), tmp_path)
    forward, numbers = target.forward, set()

    def spy(ids: Tensor, rows: Rows, logits_to_keep: int) -> Verdict:
        numbers.add(len(ids))
        return forward(ids, rows, logits_to_keep)

    monkeypatch.setattr(target, "forward", spy)
    for count in range(1, target.context_length + 1):
        start = target.context_length - count  # where padding has the least room
        assert len(target.prefill(0, start, [5] * count)) == count
    assert numbers == {16, 32, 48, 64, 96, 128, 192, 256}


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
    ],
    ids=["bloom", "mamba"],
)
def test_a_model_that_cannot_run_exactly_is_refused(
    config: PretrainedConfig, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=config.model_type):
        load(config, tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no config\.json"):
        load_target(EngineConfig(model=str(tmp_path)))


def test_a_broken_weights_file_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00broken!!")
    with pytest.raises(TargetError, match=str(tmp_path / "model.safetensors")):
        load_target(EngineConfig(model=str(tmp_path)))


def test_weights_that_lack_a_tensor_are_refused_by_its_name(
    tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    weights = load_file(tiny_llama / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TargetError, match=r"lack \['model.layers.1.mlp.up_proj.weight'\]"):
        load_target(EngineConfig(model=str(tmp_path)))


def test_a_context_longer_than_the_models_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(TargetError, match="max_model_len 512"):
        load_target(EngineConfig(model=str(tiny_llama), max_model_len=512))


def test_code_and_pickles_of_a_folder_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    plain = config.read_text()
    config.write_text(json.dumps(json.loads(plain) | {"auto_map": {"AutoConfig": "evil.Config"}}))
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(TargetError, match="auto_map"):
        load_target(EngineConfig(model=str(tmp_path / "m")))
    config.write_text(plain)
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(TargetError, match=r"pytorch_model\.bin"):
        load_target(EngineConfig(model=str(tmp_path / "m")))
