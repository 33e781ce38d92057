"""Drafter checkpoints: `config.json`, `model.safetensors`, and the trees of `tuned.py`.

Loading is strict: every tensor, shape and size must match, and the fingerprint must be that of the
target that is served. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tree.topology import Tree

from .config import DrafterError, HeadConfig, LookaheadConfig
from .coupling import coupled_weights
from .heads import AnyHead, new_head
from .tuned import TunedTree, save_trees

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SAMPLE_BYTES = 1 << 20  # read from both ends of every weights file for the fingerprint


def target_fingerprint(folder: str | Path) -> str:
    """A name for the target's weights: SHA-256 over sizes, headers and both ends of its files."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise DrafterError(f"{folder} holds no *.safetensors file")
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(SAMPLE_BYTES))
            stream.seek(max(0, size - SAMPLE_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()[:32]


def save_drafter(head: AnyHead, folder: str | Path, tree: Tree | None = None) -> None:
    """Write the checkpoint; without a tree an existing `plan.json` is left alone."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()
    }
    save_file(weights, out / WEIGHTS_FILE, metadata={"format": "pt"})
    config = msgspec.to_builtins(head.config)
    (out / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    if tree is not None:
        save_trees([TunedTree(tree)], out)


def load_drafter(folder: str | Path) -> AnyHead:
    """The head in its checkpoint's dtype, in evaluation mode; raises `DrafterError`."""
    config = load_config(folder)
    if isinstance(config, LookaheadConfig):
        raise DrafterError(f"{folder} has no weights: lookahead decoding needs none")
    file = Path(folder) / WEIGHTS_FILE
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DrafterError(f"{file} cannot be read: {error}") from error
    head = new_head(config)
    own = head.state_dict()
    differing = sorted(
        name
        for name in own.keys() | weights.keys()
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    )
    if differing:
        raise DrafterError(
            f"{file} does not hold the tensors that {CONFIG_FILE} describes: {differing[:4]}"
        )
    head.load_state_dict(weights)
    return head.to(next(iter(weights.values())).dtype).eval()


def inherit(head: AnyHead, folder: str | Path) -> None:
    """Begin with the weights of another drafter of the same sizes and target.

    Coupled slots may begin as those of a head with blocks of one.
    """
    source = load_drafter(folder)
    own, other = (msgspec.to_builtins(config) for config in (head.config, source.config))
    grows = own.get("coupled") and other.get("block_size") == 1
    free = {"block_size", "coupled"} if grows else set()
    differing = [
        f"{name}: {other.get(name)}, asked {own[name]}"
        for name in own.keys() - free
        if own[name] != other.get(name)
    ]
    if differing:
        raise DrafterError(f"{folder} differs: {', '.join(sorted(differing))}")
    weights = source.state_dict()
    if grows:
        weights = head.state_dict() | coupled_weights(weights, own["block_size"])
    head.load_state_dict(weights)


def check_fit(config: HeadConfig, hidden_size: int, vocab_size: int, fingerprint: str) -> None:
    """Raise `DrafterError` naming everything in which the drafter differs from its target."""
    pairs = {
        "hidden_size": (config.hidden_size, hidden_size),
        "vocab_size": (config.vocab_size, vocab_size),
        "fingerprint": (config.fingerprint, fingerprint),
    }
    differing = [
        f"{name}: drafter {own}, target {target}"
        for name, (own, target) in pairs.items()
        if own != target
    ]
    if differing:
        raise DrafterError("the drafter was made for another target; " + "; ".join(differing))


def load_config(folder: str | Path) -> HeadConfig | LookaheadConfig:
    """What a folder's drafter is; a file without a method is that of a Falcon head.

    Raises `DrafterError`.
    """
    file = Path(folder) / CONFIG_FILE
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=dict)
        config: HeadConfig | LookaheadConfig = msgspec.convert(
            {"method": "falcon"} | stored, type=HeadConfig | LookaheadConfig
        )
    except (OSError, msgspec.MsgspecError) as error:
        raise DrafterError(f"{file} cannot be read: {error}") from error
    return config
