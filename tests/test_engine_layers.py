"""The lean decoder against transformers, and its bits against themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from drafter.target import preferred_dtype
from engine.config import EngineConfig
from engine.layers import LeanDecoder, is_recognised, rope_tables
from engine.rows import Rows, causal_rows, rows_each
from engine.target import Target, Verdict, load_target

DTYPE = preferred_dtype(torch.device("cpu"))  # the one whose layers are packed
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 96,  # its root is not a power of two
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rms_norm_eps=0.1),
    "llama-yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "mistral-window": MistralConfig(**SIZES, sliding_window=12),
    "qwen2-some-layers-slide": Qwen2Config(**SIZES, **SLIDING),
    "qwen3-some-layers-slide": Qwen3Config(**SIZES, **SLIDING, head_dim=32),
}
PROMPT = list(range(3, 43))


def save_model(config: PretrainedConfig, folder: Path) -> Path:
    """A random model, norm weights and biases included."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    model.save_pretrained(folder)
    return folder


def load(folder: Path, dtype: Any) -> Target:
    return load_target(EngineConfig(model=str(folder), dtype=dtype, max_num_seqs=4))


def eager(folder: Path, dtype: torch.dtype) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_float32_equals_transformers(name: str, tmp_path: Path) -> None:
    target = load(save_model(ARCHITECTURES[name], tmp_path), "float32")
    assert is_recognised(target.model)
    assert (target.lean is not None) == (DTYPE is torch.float32)
    target.lean = target.lean or LeanDecoder(target.model, target.slots.tensor)
    features = target.prefill(0, 0, PROMPT[:30])
    target.prefill(1, 0, PROMPT[10:15])
    ids = [*PROMPT[30:], *PROMPT[15:25]]  # ten rows each of two requests
    causal = causal_rows(0, 30, 10, target.device)
    offsets, visible = causal.offsets.expand(2, -1), causal.visible.expand(2, -1, -1)
    rows = Rows([0, 1], [30, 5], offsets, visible)
    verdict = target.forward(torch.tensor(ids), rows)
    stock = eager(tmp_path, torch.float32)
    first, second = torch.tensor([PROMPT]), torch.tensor([PROMPT[10:25]])
    expected = torch.cat((stock(first).logits[0, 30:], stock(second).logits[0, 5:]))
    hidden = stock.get_decoder()(first).last_hidden_state[0]
    torch.testing.assert_close(verdict.logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(features, hidden[:30], atol=1e-5, rtol=0)
    torch.testing.assert_close(verdict.features[:10], hidden[30:], atol=1e-5, rtol=0)
    last = target.forward(torch.tensor(ids), rows, logits_to_keep=1)
    torch.testing.assert_close(last.logits, verdict.logits[-1:])


@pytest.mark.skipif(DTYPE is not torch.bfloat16, reason="packs only for bf16 units")
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_bfloat16_is_as_close_to_float32_as_transformers(name: str, tmp_path: Path) -> None:
    target = load(save_model(ARCHITECTURES[name], tmp_path), "bfloat16")
    assert target.lean is not None
    ids = torch.tensor(PROMPT)
    rows = causal_rows(0, 0, len(PROMPT), target.device)
    exact = eager(tmp_path, torch.float32)(ids[None]).logits[0]
    stock = eager(tmp_path, torch.bfloat16)(ids[None]).logits[0]

    def error(logits: Tensor) -> float:
        return float((logits.float() - exact).square().mean().sqrt())

    assert error(target.forward(ids, rows).logits) < 1.5 * error(stock)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["llama", "qwen3-some-layers-slide"])
@torch.inference_mode()
def test_bits_of_a_row_do_not_depend_on_the_rows_around_it(name: str, tmp_path: Path) -> None:
    target = load(save_model(ARCHITECTURES[name], tmp_path), str(DTYPE).removeprefix("torch."))
    target.prefill(0, 0, PROMPT)
    chain = torch.randint(0, 64, (32,), generator=torch.Generator().manual_seed(0))
    length, device = len(PROMPT), target.device
    counts = (32, 16, target.fewest_rows)
    by_count = [target.forward(chain[:n], causal_rows(0, length, n, device)) for n in counts]
    for row in range(32):
        alone = padded_rows(target, chain[row], [length + row])
        among = padded_rows(target, chain[row], [length + row, 3, 17, 40])
        assert torch.equal(alone.logits[0], among.logits[0])
        for verdict in by_count:
            if row < len(verdict.logits):
                assert torch.equal(verdict.logits[row], alone.logits[0])
                assert torch.equal(verdict.features[row], alone.features[0])


def padded_rows(target: Target, token: Tensor, lengths: list[int]) -> Verdict:
    """A row of the request in slot 0 and its neighbours, each with padding that sees it."""
    batch = len(lengths)
    count = rows_each(1, batch, target.fewest_rows)
    offsets = torch.zeros(batch, count, dtype=torch.long)
    visible = torch.zeros(batch, count, count, dtype=torch.bool)
    visible[:, :, 0] = True
    ids = token.repeat(batch, count) + torch.arange(batch)[:, None]
    return target.forward(ids.flatten() % 64, Rows(range(batch), lengths, offsets, visible))


def test_rope_tables_draw_their_picture() -> None:
    cos, sin = torch.tensor([[2.0, 3, 4, 5]]), torch.tensor([[6.0, 7, 8, 9]])
    table_cos, table_sin = rope_tables(cos, sin, turned=2, still=1)
    assert table_cos.tolist() == [[[2, 3, 4, 5], [2, 3, 4, 5], [1, 1, 1, 1]]]
    assert table_sin.tolist() == [[[-6, -7, 8, 9], [-6, -7, 8, 9], [0, 0, 0, 0]]]


class Changed(LlamaForCausalLM):
    """Somebody's variation of a known model."""


def test_only_what_is_known_exactly_is_recognised() -> None:
    small = {**SIZES, "num_hidden_layers": 1}
    assert is_recognised(LlamaForCausalLM(LlamaConfig(**small)))
    assert not is_recognised(Changed(LlamaConfig(**small)))
    assert not is_recognised(LlamaForCausalLM(LlamaConfig(**small, hidden_act="gelu")))
    assert not is_recognised(AutoModelForCausalLM.from_config(Phi3Config(**small)))
