"""A decoding tree as a set of rank paths, validated once and in the order of the KV columns.

A node is addressed by the candidate ranks on the way to it: `(0, 1)` is the second-best child of
the best child of the root. Node 0 is the root, the newest committed token. The top-1 chain comes
first, so that its rows stand in the columns of plain decoding; the rest follows by depth, then by
path. Parents precede their children, hence the ids on any path ascend.

    paths (0,) (0,0) (1,) (1,0)      ids   root 0 ── (0,) 1 ── (0,0) 2
                                               └──── (1,) 3 ── (1,0) 4
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

RankPath = tuple[int, ...]

MAX_NODES = 64  # an ancestor set fits one 64-bit word


class TreeError(ValueError):
    """The rank paths do not form a tree that can be drafted and verified."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A legal tree. Build it with `from_paths`; every field is indexed by node id.

    `paths[0]` is the root's empty path, `parents[0]` is -1, `depths[0]` is 0. `ranks[n]` is the
    last entry of `paths[n]` (0 for the root).
    """

    paths: tuple[RankPath, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    ranks: tuple[int, ...]

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> Tree:
        """The tree whose nodes below the root are `paths`, in any order.

        Raises `TreeError` on a duplicate, a missing prefix, a gap among siblings, a rank that is
        not a whole number >= 0, or more than `MAX_NODES` nodes with the root.
        """
        given = [_checked(path) for path in paths]
        known = {(), *given}
        if len(known) != len(given) + 1:
            raise TreeError(f"duplicate path {next(p for p in given if given.count(p) > 1)}")
        if len(known) > MAX_NODES:
            raise TreeError(f"{len(known)} nodes with the root, more than {MAX_NODES}")
        for path in given:
            _check_neighbours(path, known)
        ordered = sorted(known, key=lambda path: (any(path), len(path) if any(path) else 0, path))
        ids = {path: node for node, path in enumerate(ordered)}
        return cls(
            paths=tuple(ordered),
            parents=tuple(ids[path[:-1]] if path else -1 for path in ordered),
            depths=tuple(len(path) for path in ordered),
            ranks=tuple(path[-1] if path else 0 for path in ordered),
        )

    @classmethod
    def from_json(cls, document: object) -> Tree:
        """The inverse of `to_json`; raises `TreeError` on anything else."""
        paths = document.get("paths") if isinstance(document, dict) else None
        if not isinstance(paths, list) or not all(isinstance(path, list) for path in paths):
            raise TreeError('expected {"paths": [[rank, ...], ...]}')
        return cls.from_paths(paths)

    def to_json(self) -> dict[str, list[list[int]]]:
        """`{"paths": [[0], [0, 0], ...]}`: everything that defines the tree."""
        return {"paths": [list(path) for path in self.paths[1:]]}

    @property
    def num_nodes(self) -> int:
        """N, with the root."""
        return len(self.paths)

    @property
    def max_depth(self) -> int:
        """D, the most drafted tokens that one step can accept."""
        return max(self.depths)

    @property
    def max_branch(self) -> int:
        """The most nodes of one path that are off the top-1 chain."""
        return max(len(path) - _leading_zeros(path) for path in self.paths)

    def below_chain(self, length: int) -> Tree:
        """This tree with its root at the end of a chain of `length` nodes below a new root.

        Node n of this tree is node `length + n` of the new one.
        """
        above = range(length)
        return Tree(
            paths=(*((0,) * n for n in above), *((0,) * length + path for path in self.paths)),
            parents=(*range(-1, length), *(length + parent for parent in self.parents[1:])),
            depths=(*above, *(length + depth for depth in self.depths)),
            ranks=(*(0 for _ in above), *self.ranks),
        )

    def chain(self) -> Tree:
        """The top-1 chain alone, as deep as it goes."""
        return Tree.from_paths(path for path in self.paths[1:] if not any(path))

    def children(self, node: int) -> tuple[int, ...]:
        """Ids of the node's children, best rank first."""
        own = (n for n, parent in enumerate(self.parents) if parent == node)
        return tuple(sorted(own, key=lambda n: self.ranks[n]))

    def all_children(self) -> list[tuple[int, ...]]:
        """By node, the ids of its children, best rank first."""
        found: list[list[int]] = [[] for _ in self.paths]
        for node, parent in enumerate(self.parents[1:], start=1):
            found[parent].append(node)
        return [tuple(sorted(own, key=self.ranks.__getitem__)) for own in found]

    def part(self, nodes: Sequence[int]) -> Tree:
        """The tree of some of its nodes, in this order: ascending, the root and every parent among
        them. Siblings of better ranks may be missing.
        """
        place = {node: number for number, node in enumerate(nodes)} | {-1: -1}
        return Tree(
            paths=tuple(self.paths[node] for node in nodes),
            parents=tuple(place[self.parents[node]] for node in nodes),
            depths=tuple(self.depths[node] for node in nodes),
            ranks=tuple(self.ranks[node] for node in nodes),
        )

    def path_to(self, node: int) -> tuple[int, ...]:
        """Ids from the root (excluded) down to the node (included)."""
        above: list[int] = []
        while node > 0:
            above.append(node)
            node = self.parents[node]
        return tuple(reversed(above))


ROOT_ONLY = Tree.from_paths([])  # no speculation: the step verifies the newest token alone


def _leading_zeros(path: RankPath) -> int:
    return next((depth for depth, rank in enumerate(path) if rank), len(path))


def _checked(path: Sequence[int]) -> RankPath:
    if not path or any(type(rank) is not int or rank < 0 for rank in path):
        raise TreeError(f"path {list(path)} must hold at least one rank, whole numbers >= 0")
    return tuple(path)


def _check_neighbours(path: RankPath, known: set[RankPath]) -> None:
    if path[:-1] not in known:
        raise TreeError(f"path {list(path)} has no parent {list(path[:-1])}")
    if path[-1] > 0 and (*path[:-1], path[-1] - 1) not in known:
        raise TreeError(f"path {list(path)} leaves a gap: rank {path[-1] - 1} is missing")
