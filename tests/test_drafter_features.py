"""Stored features: what the target says of every row, computed once, and refused to other rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_drafter_training import command, data, folder, target  # noqa: F401  # fixtures

from drafter.config import DrafterError
from drafter.data import Example, read_rows, tokenize_rows
from drafter.features import StoredFeatures
from drafter.target import FrozenTarget


@pytest.fixture
def rows(target: FrozenTarget, data: Path) -> list[Example]:  # noqa: F811
    return tokenize_rows(read_rows([data]), target.tokenizer, target.end_ids, 64)


def test_stored_features_are_the_targets(
    target: FrozenTarget,  # noqa: F811
    rows: list[Example],
    tmp_path: Path,
) -> None:
    file = tmp_path / "new" / "features.bin"
    shares: list[float] = []
    stored = StoredFeatures(file, target, rows, 128, shares.append)
    assert shares[-1] == 1.0
    positions = sum(map(len, rows))
    assert file.stat().st_size == positions * target.hidden_size * target.dtype.itemsize
    again = StoredFeatures(file, target, rows, 128, shares.append)
    assert shares[-1] == 1.0 == max(shares)
    assert shares.count(1.0) == 1  # nothing was computed anew
    for index in (0, 3, len(rows) - 1):
        expected = target.features(torch.from_numpy(rows[index].ids).long()[None])
        torch.testing.assert_close(stored.of([index]), expected, atol=0.05, rtol=0.05)
    longest = max(len(rows[0]), len(rows[3]))
    both = again.of([0, 3])
    assert both.shape == (2, longest, target.hidden_size)
    assert torch.equal(both[1, : len(rows[3])], stored.of([3])[0])
    assert not both[0, len(rows[0]) :].any()


def test_other_rows_are_refused(
    target: FrozenTarget,  # noqa: F811
    rows: list[Example],
    tmp_path: Path,
) -> None:
    file = tmp_path / "features.bin"
    StoredFeatures(file, target, rows, 128)
    with pytest.raises(DrafterError, match="changed: data"):
        StoredFeatures(file, target, rows[1:], 128)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DrafterError, match=f"cut off: it should have {len(whole)} bytes"):
        StoredFeatures(file, target, rows, 128)
    file.with_name("features.bin.json").unlink()
    with pytest.raises(DrafterError, match="cannot be read"):
        StoredFeatures(file, target, rows, 128)


def test_a_full_disk_is_told(
    target: FrozenTarget,  # noqa: F811
    rows: list[Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fail)
    with pytest.raises(DrafterError, match=r"no 0\.0 GB for features in .*: No space left"):
        StoredFeatures(tmp_path / "features.bin", target, rows, 128)
    assert not list(tmp_path.iterdir())  # nor does what was begun fill it further


def test_runs_of_all_methods_share_them(
    folder: Path,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "features.bin"
    options = ["--steps", "3", "--features", str(file), "--heldout-share", "0"]
    assert command(folder, data, tmp_path / "falcon", *options) == 0
    monkeypatch.setattr(FrozenTarget, "features", None)  # the target is not asked again
    assert command(folder, data, tmp_path / "again", *options) == 0
    weights = [tmp_path / name / "model.safetensors" for name in ("falcon", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert command(folder, data, tmp_path / "medusa", *options, "--method", "medusa") == 0
