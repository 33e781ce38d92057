"""Tiny models that the tests make themselves: no hub, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from drafter.checkpoint import save_drafter, target_fingerprint
from drafter.config import DrafterConfig
from drafter.model import FalconHead
from tree.topology import Tree

SMALL_TREE = Tree.from_paths(
    [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0], [1], [1, 0], [2], [0, 1], [0, 1, 0], [1, 1], [0, 0, 1]]
)


def save_random_target(config: PretrainedConfig, folder: Path) -> Path:
    """A randomly initialised model whose logits are far enough apart to have clear picks."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def save_random_drafter(
    target: Path, folder: Path, tree: Tree = SMALL_TREE, **sizes: int | str | bool | None
) -> Path:
    """An untrained drafter that fits the target; its proposals are nearly always wrong."""
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(target)
    fitting: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "fingerprint": target_fingerprint(target),
    }
    head = FalconHead(DrafterConfig(**(fitting | sizes)))
    if head.coupling is not None:  # what is told is to matter
        for weight in head.coupling.told.parameters():
            torch.nn.init.normal_(weight)
        torch.nn.init.normal_(head.coupling.start.weight)
    save_drafter(head, folder, tree)
    return folder
