"""What an engine is started with: the first frame that its process reads; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Speculation = Literal["auto", "always", "off"]

Positive = Annotated[int, msgspec.Meta(ge=1)]
OrZero = Annotated[int, msgspec.Meta(ge=0)]

MAX_NGRAM = 16
MAX_LOOKUP = 63


class NGrams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prompt lookup, in vLLM's words: the text's last `prompt_lookup_max` tokens are looked up in
    it, else one less, down to `prompt_lookup_min`; of what followed them there at most
    `num_speculative_tokens` are verified in a step.

    Raises `ValueError` for numbers that cannot be.
    """

    prompt_lookup_max: int = 3
    prompt_lookup_min: int = 1
    num_speculative_tokens: int = MAX_LOOKUP

    def __post_init__(self) -> None:
        least, most = self.prompt_lookup_min, self.prompt_lookup_max
        if not 1 <= least <= most <= MAX_NGRAM:
            raise ValueError(
                f"prompt_lookup_min {least}, prompt_lookup_max {most}: use 1 to {MAX_NGRAM}, "
                "the first not above the second"
            )
        if not 1 <= self.num_speculative_tokens <= MAX_LOOKUP:
            raise ValueError(
                f"num_speculative_tokens {self.num_speculative_tokens}: use 1 to {MAX_LOOKUP}"
            )


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Models and sizes. Paths are folders of safetensors checkpoints.

    Requests are looked up in their own text by `prompt_lookup`, beside a `drafter` only where
    `speculation` is "auto"; None of both drafts nothing but what clients predict. `dtype` and
    `device` "auto" mean: CUDA in the checkpoint's own dtype where there is a GPU, else the CPU in
    bfloat16 if it has bf16 units and float32 if not. `max_model_len` 0 takes the model's own
    context length. `threads` 0 leaves torch's default.

    `speculation` "auto" drafts as much as is predicted to pay for the present batch, "always" the
    drafter's whole plan or all that fits one class of rows, "off" nothing. `deterministic` computes
    every row in one class of kernels, so that in bfloat16 too no bit depends on a request's
    neighbours, chunks or cached prefix.

    The target's layers are split over `tensor_parallel_size` processes, each with a GPU of its own
    where there are GPUs; `threads` is for each of them, and 0 divides torch's default.
    """

    model: str
    drafter: str | None = None
    dtype: Dtype = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_model_len: OrZero = 0
    max_num_seqs: Positive = 8
    threads: OrZero = 0
    speculation: Speculation = "auto"
    prompt_lookup: NGrams | None = NGrams()
    deterministic: bool = False
    tensor_parallel_size: Positive = 1
