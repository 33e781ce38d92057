"""`plan.json`: what is written is read again, old files are read, others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drafter.config import DrafterError, Dynamic
from drafter.tuned import DEFAULT_TREE, PLAN_FILE, TunedTree, load_trees, save_trees
from tree.topology import ROOT_ONLY, Tree

TREE = Tree.from_paths([[0], [0, 0], [1]])
ACCEPTED = {(0,): 0.7, (0, 0): 0.5, (1,): 0.1}


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    dynamic = Dynamic(num_verified=3, least_trust=0.4, sharpness=1.7, tau=2.5, passes=0.25)
    trees = [
        TunedTree(TREE, 1, ACCEPTED),
        TunedTree(TREE, 4, dynamic=dynamic),
        TunedTree(ROOT_ONLY, 8),
    ]
    save_trees(trees, tmp_path)
    save_trees(trees, tmp_path)
    assert load_trees(tmp_path) == trees
    assert [file.name for file in tmp_path.iterdir()] == [PLAN_FILE]


def test_a_file_of_one_tree_is_legal_and_no_file_means_the_default(tmp_path: Path) -> None:
    assert load_trees(tmp_path) == [TunedTree(DEFAULT_TREE)]
    (tmp_path / PLAN_FILE).write_text(json.dumps(TREE.to_json()))
    assert load_trees(tmp_path) == [TunedTree(TREE)]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("{", "Expecting"),
        ("[]", "object"),
        ('{"plans": []}', "plans is empty"),
        ('{"plans": [{}]}', "paths"),
        ('{"paths": [[0, 0]]}', "no parent"),
        ('{"paths": [[true]]}', "int"),
        ('{"paths": [[0]], "accepted": [0.5, 0.5]}', "an entry for each path"),
        ('{"paths": [[0]], "accepted": [1.5]}', "shares from 0 to 1"),
        ('{"paths": [[0]], "batch": 0}', "batch must be at least 1"),
        ('{"paths": [[0]], "nodes": 3}', "nodes"),
        ('{"paths": [[0]], "dynamic": {}}', "num_verified"),
        ('{"paths": [[0]], "dynamic": {"num_verified": 1}}', "num_verified must be at least 2"),
        ('{"paths": [[0]], "dynamic": {"num_verified": 2, "tau": 0.5}}', "tau must be at least 1"),
        ('{"paths": [[0]], "dynamic": {"num_verified": 2, "passes": 0}}', "passes must be above 0"),
        ('{"paths": [[0]], "dynamic": {"num_verified": 2, "sharpness": 0}}', "sharpness above 0"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, document: str, complaint: str) -> None:
    (tmp_path / PLAN_FILE).write_text(document)
    with pytest.raises(DrafterError, match=f"plan.json holds no legal tree: .*{complaint}"):
        load_trees(tmp_path)
