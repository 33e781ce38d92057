"""What a model folder must not hold: anything that would have to be run. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def danger_in(folder: Path) -> str | None:
    """Why the folder is not served, with what to do about it; None where nothing speaks against.

    Pickles beside safetensors are never opened, hence no danger.
    """
    return _pickled_weights(folder) or _code(folder)


def _pickled_weights(folder: Path) -> str | None:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if not pickles or any(folder.glob("*.safetensors")):
        return None
    return (
        f"{folder} holds its weights in {pickles[0]}, a format that runs code when it is read; "
        "only *.safetensors are served. Where you trust the file, convert it: AutoModelForCausalLM"
        ".from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and save its tokenizer there too"
    )


def _code(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None  # who loads it complains
    if not isinstance(config, dict) or not config.get("auto_map"):
        return None
    return (
        f"{folder}/config.json asks for code of the folder's own ('auto_map'), and no code of a "
        f"model folder is ever run. If transformers itself knows the model type "
        f"'{config.get('model_type')}', remove 'auto_map' from config.json; else the model cannot "
        "be served"
    )
