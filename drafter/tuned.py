"""`plan.json`: the trees that were tuned for a drafter, by how many sequences decode together.

    {"plans": [{"batch": 1, "paths": [[0], [0, 0], [1]], "accepted": [0.7, 0.5, 0.1]}, ...]}

There may be several for a number of sequences, as for other temperatures; the engine starts with
the first. `accepted` is the share of steps in which each path was right when the tree was tuned; it
may be left out. `"dynamic": {...}`, see `config.Dynamic`, lets each draft take what it trusts of
the paths. `{"paths": [...]}` is one tree of which nothing was counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tree.topology import RankPath, Tree, TreeError

from .config import DrafterError, Dynamic

PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class TunedTree:
    """The tree for `batch` sequences, and the share of steps in which each path was right.

    With `dynamic` drafts are parts of the tree.
    """

    tree: Tree
    batch: int = 1
    accepted: Mapping[RankPath, float] = field(default_factory=dict)
    dynamic: Dynamic | None = None


# For a drafter that was not tuned: a chain with a few second choices.
DEFAULT_TREE = Tree.from_paths(
    [
        *([0], [0, 0], [0, 0, 0], [0, 0, 0, 0]),
        *([1], [1, 0], [1, 1], [2], [3]),
        *([0, 1], [0, 1, 0], [0, 2], [0, 0, 1], [0, 0, 2], [0, 0, 0, 1]),
    ]
)


class _Plan(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    paths: list[list[int]]
    batch: int = 1
    accepted: list[float] = []
    dynamic: Dynamic | None = None

    def __post_init__(self) -> None:
        if self.accepted and len(self.accepted) != len(self.paths):
            raise ValueError("accepted must have an entry for each path")
        if not all(0 <= share <= 1 for share in self.accepted):
            raise ValueError("accepted must hold shares from 0 to 1")
        if self.batch < 1:
            raise ValueError("batch must be at least 1")


class _Plans(msgspec.Struct, forbid_unknown_fields=True):
    plans: list[_Plan]


def has_plan(folder: str | Path) -> bool:
    """Whether a drafter has trees of its own."""
    return (Path(folder) / PLAN_FILE).exists()


def load_trees(folder: str | Path) -> list[TunedTree]:
    """The trees of `plan.json`, or the default one where there is no such file.

    Raises `DrafterError` for anything else.
    """
    file = Path(folder) / PLAN_FILE
    if not has_plan(folder):
        return [TunedTree(DEFAULT_TREE)]
    try:
        document = json.loads(file.read_text())
        if isinstance(document, dict) and "plans" not in document:
            document = {"plans": [document]}
        plans = msgspec.convert(document, _Plans).plans
        if not plans:
            raise ValueError("plans is empty")
        return [_tuned(plan) for plan in plans]
    except (OSError, ValueError, TreeError) as error:
        raise DrafterError(f"{file} holds no legal tree: {error}") from error


def _tuned(plan: _Plan) -> TunedTree:
    paths = [tuple(path) for path in plan.paths]
    accepted = dict(zip(paths, plan.accepted, strict=False))
    return TunedTree(Tree.from_paths(paths), plan.batch, accepted, plan.dynamic)


def save_trees(trees: Sequence[TunedTree], folder: str | Path) -> None:
    """Replace the drafter's `plan.json`, whole or not at all."""
    plans = [
        _Plan(
            paths=one.tree.to_json()["paths"],
            batch=one.batch,
            accepted=[round(one.accepted[path], 4) for path in one.tree.paths[1:]]
            if one.accepted
            else [],
            dynamic=one.dynamic,
        )
        for one in trees
    ]
    file = Path(folder) / PLAN_FILE
    fresh = file.with_suffix(".json.new")
    fresh.write_text(json.dumps(msgspec.to_builtins(_Plans(plans))) + "\n")
    os.replace(fresh, file)
