"""Reads a Dockerfile: the instructions of each stage, continued lines joined, comments left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class Instruction:
    word: str
    rest: str


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    source: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [one.rest for one in self.instructions if one.word == word]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """`arguments` are those before the first stage, which names of stages may hold."""

    arguments: dict[str, str]
    stages: list[Stage]

    def stage(self, name: str) -> Stage | None:
        return next((stage for stage in self.stages if stage.name == name), None)


def read(path: Path, arguments: Mapping[str, str] = {}) -> Dockerfile:  # not changed
    """`arguments` override the file's own, as `--build-arg` does."""
    known: dict[str, str] = {}
    stages: list[Stage] = []
    for one in _instructions(path.read_text()):
        if one.word == "FROM":
            source, _, name = one.rest.partition(" AS ")
            stages.append(Stage(name, expanded(source, known)))
        elif stages:
            stages[-1].instructions.append(one)
        else:
            name, _, value = one.rest.partition("=")
            known[name] = arguments.get(name, value)
    return Dockerfile(known, stages)


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = []
    for line in filter(None, joined.splitlines()):
        word, _, rest = line.partition(" ")
        found.append(Instruction(word.upper(), rest.strip()))
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Text with its variables' values in their places."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[2], ""), text)
