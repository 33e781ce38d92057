"""Make the demo's small draft model, the rival of speculative sampling, by distillation.

    python models/demo/draft_model.py --target models/demo/target --data rows.jsonl \
        --regenerated runs/demo/regenerated.jsonl --features features.bin \
        --keep-original --out models/demo/rivals/sps

A Llama of the target's width and vocabulary with a few of its layers, which are where it begins. It
learns the target's own next-token distributions in answers, on the rows and for the steps that
`falcon train` gives the other drafters. `features.bin` is what that wrote with `--features` and
`--keep-original`, or without both, and the same `--max-length`, `--heldout-share` and `--seed`:
other rows are refused.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from build import build_optimizers, learning_rate
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from drafter.data import (
    Batch,
    Example,
    collate,
    plan_batches,
    read_rows,
    split_heldout,
    tokenize_rows,
)
from drafter.features import StoredFeatures
from drafter.regenerate import read_regenerated
from drafter.run import MOST_HELDOUT
from drafter.target import FrozenTarget, load_frozen_target

BATCH_TOKENS = 4096


def shallow_copy(target: LlamaForCausalLM, num_layers: int) -> LlamaForCausalLM:
    """The target with so many of its layers, evenly spaced, in float32 and free to learn."""
    config = copy.deepcopy(target.config)
    last = config.num_hidden_layers - 1
    kept = [round(last * place / max(num_layers - 1, 1)) for place in range(num_layers)]
    config.num_hidden_layers, config.layer_types = num_layers, None
    small = LlamaForCausalLM(config).float()
    weights = dict(target.state_dict())
    for place, index in enumerate(kept):
        for name in small.model.layers[place].state_dict():
            weights[f"model.layers.{place}.{name}"] = target.state_dict()[
                f"model.layers.{index}.{name}"
            ]
    small.load_state_dict({name: weights[name] for name in small.state_dict()})
    return small.train()


def distillation_loss(
    target: FrozenTarget, small: LlamaForCausalLM, batch: Batch, features: Tensor
) -> Tensor:
    """Cross-entropy [] against what the target says of answers; its features are [B,S,H]."""
    names_answer = batch.is_answer[:, 1:]  # by the position before
    with torch.no_grad():
        wanted = target.parts.head(features[:, :-1][names_answer]).float().softmax(-1)  # [P, V]
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        own = small.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
        logits = small.lm_head(own[names_answer])
    return F.cross_entropy(logits.float(), wanted)


def train(target: FrozenTarget, examples: list[Example], args: argparse.Namespace) -> None:
    stored = StoredFeatures(args.features, target, examples, BATCH_TOKENS)
    if args.init:
        small = LlamaForCausalLM.from_pretrained(args.init, dtype=torch.float32).train()
    else:
        small = shallow_copy(target.model, args.layers)
    small.to(target.device)
    optimizers = build_optimizers(small, args.rate)
    lengths = [len(example) for example in examples]
    batches: list[list[int]] = []
    epoch = 0
    for step in range(args.steps):
        if not batches:
            batches = plan_batches(lengths, BATCH_TOKENS, args.seed, epoch)
            epoch += 1
        indices = batches.pop()
        batch = collate([examples[index] for index in indices], target.device)
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = args.rate * learning_rate((step + 1) / args.steps)
        loss = distillation_loss(target, small, batch, stored.of(indices))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 0 or step == args.steps - 1:
            print(json.dumps({"step": step, "loss": round(loss.item(), 4)}), flush=True)
    small.to(torch.bfloat16).save_pretrained(args.out)
    target.tokenizer.save_pretrained(args.out)


def load_examples(target: FrozenTarget, args: argparse.Namespace) -> list[Example]:
    """The target's answers and, if asked for, the rows as they were, but for those kept apart."""
    if not args.keep_original:
        return read_regenerated(args.regenerated)
    rows = tokenize_rows(read_rows(args.data), target.tokenizer, target.end_ids, args.max_length)
    training, _ = split_heldout(rows, args.heldout_share, MOST_HELDOUT, args.seed)
    return read_regenerated(args.regenerated) + training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="folder of the target")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="rows, JSON lines")
    parser.add_argument("--regenerated", type=Path, required=True, help="as falcon train wrote it")
    parser.add_argument("--keep-original", action="store_true", help="learn from the rows as well")
    parser.add_argument("--features", type=Path, required=True, help="the target's, stored")
    parser.add_argument("--out", type=Path, required=True, help="folder of the draft model")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--init", type=Path, help="go on with this draft model instead")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--heldout-share", type=float, default=0.02, help="rows kept apart")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    target = load_frozen_target(args.target, torch.device("cpu"))
    train(target, load_examples(target, args), args)


if __name__ == "__main__":
    main()
