"""The arrows of ARCHITECTURE.md: who may import whom, and that the HTTP process has no torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "tree": set(),
    "drafter": {"tree"},
    "engine": {"drafter", "tree"},
    "server": {"engine"},
    "benchmarks": {"engine", "drafter", "tree"},
}
# What the HTTP process may take from the engine: nothing that leads to torch.
TORCHLESS = {
    "engine.client",
    "engine.config",
    "engine.folders",
    "engine.grammar.regexes",
    "engine.grammar.sources",
    "engine.logs",
    "engine.messages",
    "engine.seeds",
    "engine.token_bytes",
    "engine.wire",
}


def imports_of(file: Path) -> set[str]:
    """Dotted names that a file imports absolutely, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way_down(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        others = {name.split(".")[0] for name in imports_of(file)} & ALLOWED.keys()
        assert others - {package} <= ALLOWED[package], file


def test_the_http_process_takes_only_torchless_modules_of_the_engine() -> None:
    for file in (ROOT / "server").rglob("*.py"):
        used = {name for name in imports_of(file) if name.split(".")[0] == "engine"}
        assert used <= TORCHLESS, file
    for name in TORCHLESS:
        file = ROOT / (name.replace(".", "/") + ".py")
        assert not {n.split(".")[0] for n in imports_of(file)} & {"torch", "transformers"}, file


@pytest.mark.parametrize("package", ALLOWED)
def test_nothing_is_unpickled(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert not imports_of(file) & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, file
        assert "torch.load" not in file.read_text(), file


def test_documents_hold_no_placeholders() -> None:
    for file in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*/*.md")]:
        assert not re.findall(r"@[A-Z]+@", file.read_text()), file
