"""How many tree rows have the very bits of plain decoding: on the top-1 chain, and off it.

    python -m benchmarks.exactness [--model DIR --drafter DIR] --prompts FILE --limit 8

Each prompt is prefilled, a tree of arbitrary tokens is verified behind it, and every path of the
tree is decoded again one token at a time. The engine relies on chain rows being equal; what rows
off the chain pick is provisional.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec
import torch
from torch import Tensor

from drafter.tuned import load_trees
from engine.rows import Rows, TreeRows, rows_each
from engine.target import Target
from tree.topology import Tree

from .command import USER_ERROR, add_model_arguments
from .loading import load, prepare
from .machine import describe_machine
from .settings import BenchmarkError, Settings, choose_pair


@dataclass(slots=True)
class Count:
    """Rows compared, those whose logits differ in any bit, and those whose argmax differs."""

    rows: int = 0
    differing: int = 0
    picks: int = 0
    largest: float = 0.0

    def add(self, logits: Tensor, reference: Tensor) -> None:
        """Compare one row [V] with plain decoding's."""
        self.rows += 1
        self.differing += not torch.equal(logits, reference)
        self.picks += int(logits.max(-1).indices != reference.max(-1).indices)
        self.largest = max(self.largest, float((logits - reference).abs().max()))


@torch.inference_mode()
def count_rows(target: Target, tree: Tree, prompts: Sequence[Sequence[int]]) -> dict[str, Count]:
    """Compare all rows of one tree behind each prompt; the spare slot decodes."""
    counts = {"chain": Count(), "branches": Count()}
    dice = torch.Generator().manual_seed(0)
    rows = TreeRows.of(tree, rows_each(tree.num_nodes, 1, target.fewest_rows), target.device)
    for prompt in prompts:
        target.prefill(0, 0, prompt)
        ids = torch.zeros(len(rows.offsets), dtype=torch.long)
        ids[: tree.num_nodes] = torch.randint(
            0, target.vocab_size, (tree.num_nodes,), generator=dice
        )
        ids = ids.to(target.device)
        description = Rows([0], [len(prompt)], rows.offsets[None], rows.visible[None])
        logits = target.forward(ids, description).logits
        for node in range(1, tree.num_nodes):
            path = [0, *tree.path_to(node)]
            kind = "branches" if any(tree.paths[node]) else "chain"
            counts[kind].add(logits[node], decode(target, len(prompt), ids[path]))
    return counts


def decode(target: Target, length: int, path: Tensor) -> Tensor:
    """Logits [V] of the last token of a path, decoded token by token in the spare slot."""
    count = rows_each(1, 1, target.fewest_rows)
    offsets = torch.zeros(1, count, dtype=torch.long, device=target.device)
    visible = torch.zeros(1, count, count, dtype=torch.bool, device=target.device)
    visible[:, :, 0] = True
    target.copy_prefix(0, target.spare_slot, length)
    for place, token in enumerate(path):
        rows = Rows([target.spare_slot], [length + place], offsets, visible)
        verdict = target.forward(token.repeat(count), rows)
    return verdict.logits[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Count for one pair; 2 with one line on stderr when it cannot be done as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    load_average = os.getloadavg()[0]
    try:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only; never ask a hub
        model, drafter = choose_pair(args.model, args.drafter)
        if drafter is None:
            raise BenchmarkError("--drafter is needed: its tree is verified")
        settings = Settings(
            model=model,
            drafter=drafter,
            methods=("falcon",),
            prompts=tuple(args.prompts),
            dtype=args.dtype,
            device=args.device,
            limit=args.limit,
            threads=args.threads,
        )
        prompts, _ = prepare(settings)
        target = load(settings, drafter, prompts.longest + settings.max_tokens).target
    except BenchmarkError as error:
        print(f"exactness: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    tuned = load_trees(drafter)[0]
    tree = tuned.tree
    if tuned.dynamic is not None:  # some nodes of as many as are ever verified
        tree = Tree.from_paths(tree.paths[1 : tuned.dynamic.num_verified])
    counts = count_rows(target, tree, [prompt.ids for prompt in prompts.prompts])
    for kind, count in counts.items():
        print(
            f"{kind}: {count.differing} of {count.rows} rows differ, "
            f"by at most {count.largest:.4f}; {count.picks} picks differ"
        )
    found = {kind: asdict(count) for kind, count in counts.items()}
    machine = msgspec.to_builtins(describe_machine(target.device, target.dtype, load_average))
    print(json.dumps({"machine": machine, "rows": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
