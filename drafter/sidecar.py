"""What a file that takes long to make was made with, as JSON beside it: no run takes another's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import DrafterError


def write_sidecar(sidecar: Path, made_with: Mapping[str, Any]) -> None:
    sidecar.write_text(json.dumps(made_with, indent=2) + "\n", encoding="utf-8")


def check_sidecar(sidecar: Path, file: Path, asked: Mapping[str, Any]) -> None:
    """Raise `DrafterError` naming what differs between what `file` was made with and `asked`."""
    try:
        stored = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DrafterError(
            f"{sidecar}, which belongs to {file}, cannot be read: {error}"
        ) from error
    changed = sorted(name for name in stored.keys() | asked if stored.get(name) != asked.get(name))
    if changed:
        raise DrafterError(f"{file} was made otherwise; changed: {', '.join(changed)}")
