"""The metrics of several replicas as those of one, told apart by a label."""

from __future__ import annotations

from collections.abc import Mapping


def merged(expositions: Mapping[str, bytes]) -> bytes:
    """Prometheus texts by the name of their replica, in one; every family is in one piece."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in expositions.items():
        family = ""
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads[family] = [line]
            elif line.startswith("#"):
                heads[family].append(line)
            else:
                samples.setdefault(family, []).append(_labelled(line, replica))
    lines = [line for name, head in heads.items() for line in head + samples.get(name, [])]
    return "".join(line + "\n" for line in lines).encode()


def _labelled(sample: str, replica: str) -> str:
    """`name{labels} value` or `name value` with one label more."""
    name, brace, labels = sample.partition("{")
    if brace:
        return f'{name}{{replica="{replica}",{labels}'
    name, _, value = sample.partition(" ")
    return f'{name}{{replica="{replica}"}} {value}'
