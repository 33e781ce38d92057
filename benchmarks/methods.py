"""The decoding methods that are compared, behind one protocol, on the same weights.

`ar`, `falcon` and `pld` are our engine, without a drafter, with it, and with prompt lookup; they
share one copy of the target.
`hf` is `model.generate` of transformers with its stock attention, on a copy of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

from drafter.coupling import Coupling
from engine.engine import Engine
from engine.messages import SamplingParams, StepReport, Submit
from engine.packing import PackedLinear
from engine.pretrained import kv_shape


@dataclass(frozen=True, slots=True)
class Phases:
    """Where one generation's milliseconds went, summed over its steps."""

    prefill: float
    draft: float
    verify: float
    host: float


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer. `seconds` is end to end, `accepted` of the tokens came from the drafter.

    `nodes` counts the tokens that the target checked, roots included. `phases` is None where a
    method does not tell.
    """

    token_ids: tuple[int, ...]
    seconds: float
    steps: int
    accepted: int
    nodes: int
    phases: Phases | None


@dataclass(frozen=True, slots=True)
class Task:
    """What every method is asked for, the prompt aside."""

    max_tokens: int
    sampling: SamplingParams
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a method needs: parameters, and keys and values of the longest sequence."""

    parameters: int
    keys_values: int


class Method(Protocol):
    """Answers prompts; `is_comparable` if its tokens are to equal the baseline's."""

    name: str
    is_comparable: bool
    dtype: torch.dtype

    def generate(self, prompt_ids: Sequence[int]) -> Generation: ...

    def memory(self) -> Memory: ...


class EngineMethod:
    """Our engine with one request at a time."""

    is_comparable = True

    def __init__(self, name: str, engine: Engine, task: Task) -> None:
        self.name = name
        self.engine = engine
        self.task = task
        self.dtype = engine.target.dtype

    def generate(self, prompt_ids: Sequence[int]) -> Generation:
        """Submit, then step until the answer is done; no prompt is found in the cache."""
        task = self.task
        self.engine.scheduler.forget()
        stops = list(task.stop_token_ids)
        reports: list[StepReport] = []
        start = time.perf_counter()
        self.engine.submit(Submit("0", list(prompt_ids), task.max_tokens, task.sampling, stops))
        while self.engine.has_work:
            reports.append(self.engine.step())
        return generation_of(reports, time.perf_counter() - start)

    def memory(self) -> Memory:
        """What the engine holds for one slot, besides the spare one."""
        target, drafter = self.engine.target, self.engine.decoder.drafter
        parameters, keys_values = parameter_bytes(target.model), target.slots.tensor.nbytes
        if drafter is not None:
            parameters += parameter_bytes(drafter.head)
            keys_values += drafter.num_bytes
        return Memory(parameters, keys_values)


def generation_of(reports: Sequence[StepReport], seconds: float) -> Generation:
    """Add up the steps of one request; some only prefill a part of its prompt."""
    outputs = [output for report in reports for output in report.outputs]
    return Generation(
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        seconds=seconds,
        steps=len(outputs),
        accepted=sum(output.accepted for output in outputs),
        nodes=sum(output.drafted + 1 for output in outputs),
        phases=Phases(
            prefill=sum(report.prefill_ms for report in reports),
            draft=sum(report.draft_ms for report in reports),
            verify=sum(report.verify_ms for report in reports),
            host=sum(report.host_ms for report in reports),
        ),
    )


class HuggingFaceMethod:
    """`model.generate` as transformers users call it. Its samples come from its own generator."""

    name = "hf"

    def __init__(self, model: Any, task: Task) -> None:
        self.model = model
        self.task = task
        self.dtype: torch.dtype = model.dtype
        self.is_comparable = task.sampling.temperature == 0
        self.longest = 0
        # Replaced, not passed: what a given one leaves open is filled in from the model's own.
        self.model.generation_config = generation_config(task)

    @torch.inference_mode()
    def generate(self, prompt_ids: Sequence[int]) -> Generation:
        """One call; the seed is set anew for every prompt."""
        torch.manual_seed(self.task.sampling.seed)
        start = time.perf_counter()
        ids = torch.tensor([list(prompt_ids)], device=self.model.device)
        output = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        tokens = tuple(output[0, ids.shape[1] :].tolist())  # sync: ends the timing
        seconds = time.perf_counter() - start
        self.longest = max(self.longest, output.shape[1])
        return Generation(tokens, seconds, len(tokens), 0, len(tokens), None)

    def memory(self) -> Memory:
        """Parameters, and the cache at its longest so far, by its shape."""
        heads, size = kv_shape(self.model.config)
        columns = 2 * self.model.config.num_hidden_layers * heads * size * self.longest
        return Memory(parameter_bytes(self.model), columns * self.model.dtype.itemsize)


def generation_config(task: Task) -> GenerationConfig:
    """Our parameters in transformers' words; nothing of the checkpoint's own configuration."""
    sampling, ends = task.sampling, list(task.stop_token_ids)
    common: dict[str, Any] = {
        "max_new_tokens": task.max_tokens,
        "eos_token_id": ends or None,
        "pad_token_id": ends[0] if ends else 0,
    }
    if sampling.temperature > 0:
        common |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p or None,
        }
    common["do_sample"] = sampling.temperature > 0
    untyped: Any = GenerationConfig
    config: GenerationConfig = untyped(**common)
    return config


def parameter_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights, and of tables made of them; packed ones, which are no parameters, count
    as what they were.
    """
    packed = sum(m.weight.nbytes for m in model.modules() if isinstance(m, PackedLinear))
    packed += sum(
        m.table.nbytes for m in model.modules() if isinstance(m, Coupling) and m.table is not None
    )
    return packed + sum(parameter.nbytes for parameter in model.parameters())
