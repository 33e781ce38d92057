"""A training run's place on disk: what is needed to go on exactly where it stopped.

    OUT/config.json, model.safetensors    the drafter so far, ready to be served
    OUT/checkpoint/                       drafter, optimizer.safetensors, state.json
    OUT/log.jsonl, curves.png             what happened so far

A checkpoint is written under a temporary name and renamed; there is a whole one at any moment.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_drafter
from .config import DrafterError, HeadConfig
from .heads import AnyHead
from .settings import CADENCE, TrainingSettings

CHECKPOINT_FOLDER = "checkpoint"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
LOG_FILE = "log.jsonl"


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what a run learns; `init` names the weights that it began with.

    Stored features were computed in batches of their own, which changes their last bits.
    """

    settings: TrainingSettings
    drafter: HeadConfig
    data: str
    heldout: str
    init: str = ""
    stored_features: bool = False


class RunState(msgspec.Struct, kw_only=True):
    """Where a run stands. `position` counts batches done in `epoch`; `elapsed` is in seconds.

    `sums` are the total, feature and token losses, the gradient norms and the tokens since the last
    log record, `summed` the number of steps in them.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    elapsed: float = 0.0
    generator: str = ""
    sums: list[float] = msgspec.field(default_factory=lambda: [0.0] * 5)
    summed: int = 0


class _StateFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    identity: RunIdentity
    state: RunState


def holds_run(out: Path) -> bool:
    """Whether a folder has the traces of a training run or of a drafter."""
    names = (CONFIG_FILE, WEIGHTS_FILE, LOG_FILE, CHECKPOINT_FOLDER, f"{CHECKPOINT_FOLDER}.old")
    return any((out / name).exists() for name in names)


def save_run(
    out: Path,
    identity: RunIdentity,
    state: RunState,
    head: AnyHead,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the checkpoint and the drafter; a crash on the way leaves the previous checkpoint."""
    fresh, current, old = (out / f"{CHECKPOINT_FOLDER}{end}" for end in (".new", "", ".old"))
    shutil.rmtree(fresh, ignore_errors=True)
    save_drafter(head, fresh)
    save_file(_flatten(optimizer), fresh / OPTIMIZER_FILE)
    written = msgspec.json.encode(_StateFile(identity=identity, state=state))
    (fresh / STATE_FILE).write_bytes(msgspec.json.format(written, indent=2) + b"\n")
    if current.exists():
        shutil.rmtree(old, ignore_errors=True)
        current.rename(old)
    fresh.rename(current)
    shutil.rmtree(old, ignore_errors=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(current / name, out / f"{name}.new")
        os.replace(out / f"{name}.new", out / name)


def load_run(
    out: Path, identity: RunIdentity, head: AnyHead, optimizer: torch.optim.Optimizer
) -> RunState | None:
    """Put a checkpoint's weights into `head` and `optimizer`; None where there is no checkpoint.

    Raises `DrafterError` naming every setting that is not the checkpoint's.
    """
    candidates = (out / CHECKPOINT_FOLDER, out / f"{CHECKPOINT_FOLDER}.old")
    folder = next((folder for folder in candidates if folder.exists()), None)
    if folder is None:
        return None
    try:
        stored = msgspec.json.decode((folder / STATE_FILE).read_bytes(), type=_StateFile)
        weights = load_file(folder / WEIGHTS_FILE)
        moments = load_file(folder / OPTIMIZER_FILE)
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise DrafterError(f"the checkpoint {folder} cannot be read: {error}") from error
    changed = changed_settings(stored.identity, identity)
    if changed:
        raise DrafterError(f"{folder} is of another run; changed: {'; '.join(changed)}")
    head.load_state_dict(weights)
    optimizer.load_state_dict(_unflatten(moments, optimizer))
    return stored.state


def changed_settings(stored: RunIdentity, asked: RunIdentity) -> list[str]:
    """What differs, as `name: checkpoint's value, asked value`; when to save or log may differ."""
    before, now = (_fields(identity) for identity in (stored, asked))
    return [
        f"{name}: checkpoint {before.get(name)}, asked {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if name not in CADENCE and before.get(name) != now.get(name)
    ]


def _fields(identity: RunIdentity) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "data": identity.data,
        "heldout": identity.heldout,
        "init": identity.init,
        "stored_features": identity.stored_features,
    }
    for part in (identity.settings, identity.drafter):
        fields |= msgspec.to_builtins(part)
    return fields


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": tensor.detach().cpu().contiguous()
        for index, values in state.items()
        for name, tensor in values.items()
    }


def _unflatten(moments: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
