"""What an engine is started with: the first frame that its process reads; imports no torch."""

from __future__ import annotations

from typing import Literal

import msgspec

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Speculation = Literal["auto", "always", "off"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Models and sizes. Paths are folders of safetensors checkpoints.

    `drafter` None serves without speculation. `dtype` and `device` "auto" mean: CUDA in the
    checkpoint's own dtype where there is a GPU, else the CPU in bfloat16 if it has bf16 units and
    float32 if not. `max_model_len` 0 takes the model's own context length. `threads` 0 leaves
    torch's default.

    `speculation` "auto" drafts as much as is predicted to pay for the present batch, "always" the
    drafter's whole plan, "off" nothing. `deterministic` computes every row in one class of kernels,
    so that in bfloat16 too no bit depends on a request's neighbours, chunks or cached prefix.
    """

    model: str
    drafter: str | None = None
    dtype: Dtype = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 8
    threads: int = 0
    speculation: Speculation = "auto"
    deterministic: bool = False
