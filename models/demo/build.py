"""Rebuild the demo pair from text: tokenizer, packed rows, a deep and thin Llama; then its drafter.

    python models/demo/build.py target --data TRAIN_DIR --out models/demo/target --minutes 60
    python models/demo/build.py rows --data TRAIN_DIR --out rows.jsonl
    falcon train --target models/demo/target --data rows.jsonl --regenerate --out runs/demo
    cp runs/demo/config.json runs/demo/model.safetensors models/demo/drafter/
    falcon tune --model models/demo/target --drafter models/demo/drafter --prompts HELDOUT.jsonl

The drafter that is shipped was trained with the options that the model card names.

TRAIN_DIR holds the JSON-lines files that `MIXTURE` names, rows of `{"messages": [...]}`; the model
card says where each comes from and under which licence. The learning rate follows the share of
`--minutes` that has passed, so a slower machine sees fewer tokens and still ends a full schedule.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# How often each file is read: small sets of the kinds of prompt that the demo should answer
# are repeated, large ones are sampled.
MIXTURE = {
    "gsm8k_train": 3.0,
    "svamp": 3.0,
    "mathqa_python": 2.0,
    "mbpp": 4.0,
    "p3_puzzles": 2.0,
    "oasst_english": 2.0,
    "self_instruct_human": 3.0,
    "chatterbot_english": 6.0,
    "self_dialogue": 0.4,
    "taskmaster4": 1.0,
    "flan_cot": 0.7,
    "natural_instructions_v1": 0.4,
    "tldr_pages": 0.5,
    "us_gov_blogs": 0.3,
    "world_factbook": 0.2,
    "fairytaleqa": 0.3,
    "standard_ebooks": 0.1,
    "scitldr": 0.3,
}
# Rows of each file whose prompts the target answers anew for the drafter to learn from.
DRAFTER_ROWS = {
    "gsm8k_train": 3000,
    "svamp": 200,
    "mathqa_python": 500,
    "mbpp": 800,
    "p3_puzzles": 150,
    "oasst_english": 500,
    "self_instruct_human": 350,
    "chatterbot_english": 300,
    "flan_cot": 400,
    "natural_instructions_v1": 300,
    "tldr_pages": 200,
}
SPECIAL_TOKENS = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'developer', 'user', 'assistant'] %}"
    "{{ raise_exception('the demo model knows the roles system, user and assistant') }}"
    "{% endif %}"
    "{{ '<|' + ('system' if message['role'] == 'developer' else message['role']) + '|>' }}"
    "{{ message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SYSTEM_PROMPT = "You are a helpful assistant."
VOCAB_SIZE = 4096
CONTEXT = 2048
CONFIG = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


Conversation = list[dict[str, str]]


def read_file(data: Path, name: str) -> list[Conversation]:
    with open(data / f"{name}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line)["messages"] for line in lines]


def read_rows(data: Path, seed: int) -> list[Conversation]:
    """The mixture's conversations, each file repeated or sampled as `MIXTURE` says, shuffled."""
    chooser = random.Random(seed)
    rows = []
    for name, weight in MIXTURE.items():
        own = read_file(data, name)
        whole = int(weight)
        rows += own * whole + chooser.sample(own, int(len(own) * (weight - whole)))
        if name == "mbpp":
            rows += [completion for row in own * 2 for completion in as_completion(row)]
    chooser.shuffle(rows)
    system = {"role": "system", "content": SYSTEM_PROMPT}
    return [[system, *row] if chooser.random() < 0.08 else row for row in rows]


def drafter_rows(data: Path, seed: int) -> list[Conversation]:
    """First exchanges of the files in `DRAFTER_ROWS`, and the code tasks as completions too."""
    chooser = random.Random(seed)
    rows = []
    for name, count in DRAFTER_ROWS.items():
        own = read_file(data, name)
        chosen = [row[:2] for row in chooser.sample(own, min(count, len(own)))]
        rows += chosen
        if name == "mbpp":
            rows += [completion for row in chosen for completion in as_completion(row)]
    chooser.shuffle(rows)
    return rows


def as_completion(row: Conversation) -> Iterator[Conversation]:
    """The same task asked as code completion: signature and docstring in, function out."""
    task, answer = row[0]["content"].split("\nYour code")[0], row[1]["content"]
    signature = re.search(r"^def .*:$", answer, re.MULTILINE)
    if signature is not None:
        prompt = f'{signature.group()}\n    """ {task}\n    """\n'
        yield [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def train_tokenizer(rows: list[Conversation]) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose digits stand alone, with the chat template attached."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = (message["content"] for row in rows for message in row)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=SPECIAL_TOKENS[2:],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pack(rows: list[Conversation], tokenizer: PreTrainedTokenizerFast, length: int) -> torch.Tensor:
    """All conversations end to end, cut into rows: [R, length] int64."""
    end = tokenizer.eos_token_id
    roles = {
        m: tokenizer.convert_tokens_to_ids(f"<|{m}|>") for m in ("system", "user", "assistant")
    }
    encoded = iter(
        tokenizer([m["content"] for row in rows for m in row], add_special_tokens=False).input_ids
    )
    ids: list[int] = []
    for row in rows:
        ids.append(tokenizer.bos_token_id)
        for message in row:
            ids += [roles[message["role"]], *next(encoded), end]
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).view(count, length)


def build_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(progress: float) -> float:
    """Factor on the peak rate: a short warm-up, level, then linear to zero over the last half."""
    return min(1.0, progress / 0.02, max(0.0, (1.0 - progress) / 0.5))


def next_token_loss(
    features: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy; features [B,S,H], head [V,H], targets [B,S]."""
    logits = F.linear(features, head).flatten(0, 1)  # [B*S, V]
    return F.cross_entropy(logits.float(), targets.flatten())


def train_target(
    packed: torch.Tensor, out: Path, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace
) -> None:
    """Train until the minutes are over; a log line and a checkpoint at every fortieth of it.

    The rows kept apart repeat text that is trained on where `MIXTURE` repeats a file: their loss
    shows progress, not how well the model does on unseen text.
    """
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(device)
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    loss_of = torch.compile(next_token_loss, dynamic=False)
    optimizers = build_optimizers(model, args.rate)
    held, packed = packed[: args.batch], packed[args.batch :]
    start, step, seen, logged = time.monotonic(), 0, 0, -1
    progress, average = 0.0, 0.0
    while progress < 1.0:
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = args.rate * learning_rate(progress)
        first = (step * args.batch) % (len(packed) - args.batch)
        batch = packed[first : first + args.batch].to(device)
        if progress > 0.85:  # long rows last: they teach positions that short rows never reach
            batch = batch.view(args.batch // 2, 2 * args.length)
        loss = forward_loss(model, loss_of, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, seen = step + 1, seen + batch.numel()
        average = 0.95 * average + 0.05 * loss.item() if step > 1 else loss.item()
        progress = (time.monotonic() - start) / (60 * args.minutes)
        if int(progress * 40) > logged or progress >= 1.0:
            logged = int(progress * 40)
            with torch.no_grad():
                held_loss = forward_loss(model, loss_of, held.to(device)).item()
            record = {"step": step, "tokens": seen, "progress": round(progress, 3)}
            record |= {"loss": round(average, 4), "kept_apart_loss": round(held_loss, 4)}
            print(json.dumps(record), flush=True)
            save(model, tokenizer, out, record)


def forward_loss(model: LlamaForCausalLM, loss_of, batch: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]  # a compiled function
    with torch.autocast(batch.device.type, torch.bfloat16):
        features = model.model(input_ids=batch, use_cache=False).last_hidden_state
        return loss_of(features[:, :-1], model.lm_head.weight, batch[:, 1:])


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, float]
) -> None:
    """Weights in bfloat16, tokenizer, template, and the last log record."""
    copy = LlamaForCausalLM(LlamaConfig(**CONFIG))
    copy.load_state_dict({k.replace("_orig_mod.", ""): v for k, v in model.state_dict().items()})
    copy.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["target", "rows"], help="what to make")
    parser.add_argument("--data", type=Path, required=True, help="folder of the training files")
    parser.add_argument("--out", type=Path, required=True, help="target folder, or rows file")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--length", type=int, default=512, help="tokens per packed row")
    parser.add_argument("--batch", type=int, default=10, help="rows per step, an even number")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.part == "rows":
        rows = drafter_rows(args.data, args.seed)
        args.out.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        return
    rows = read_rows(args.data, args.seed)
    tokenizer = train_tokenizer(rows)
    packed = pack(rows, tokenizer, args.length)
    print(json.dumps({"rows": len(rows), "tokens": packed.numel()}), flush=True)
    train_target(packed, args.out, tokenizer, args)


if __name__ == "__main__":
    main()
