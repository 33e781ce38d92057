"""The decoding methods that are compared, behind one protocol, on the same weights.

`ar` and `falcon` are our engine, without and with the drafter; they share one copy of the target.
`hf` is `model.generate` of transformers with its stock attention, on a copy of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from drafter.config import DrafterError
from drafter.drafting import FalconDrafter, build_plan
from engine.config import EngineConfig
from engine.engine import Engine, load_engine
from engine.messages import SamplingParams, StepReport, Submit
from engine.speculative import SpeculativeDecoder
from engine.target import TargetError, choose_device, choose_dtype, kv_shape
from tree.topology import ROOT_ONLY, Tree

from .settings import BenchmarkError, Settings


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
    """Something that answers a prompt; `has_same_output` claims the baseline's very tokens."""

    name: str
    has_same_output: bool

    def generate(self, prompt_ids: Sequence[int]) -> Generation: ...

    def memory(self) -> Memory: ...


class EngineMethod:
    """Our engine with one request at a time."""

    has_same_output = True

    def __init__(self, name: str, engine: Engine, task: Task) -> None:
        self.name = name
        self.engine = engine
        self.task = task

    def generate(self, prompt_ids: Sequence[int]) -> Generation:
        """Submit, then step until the answer is done."""
        task = self.task
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
            keys_values += drafter.keys_values.nbytes
        return Memory(parameters, keys_values)


def generation_of(reports: Sequence[StepReport], seconds: float) -> Generation:
    """Add up the steps of one request.

    A report's host time holds the prefill of the requests admitted in its step: what the first
    step's host time has above the mean of the others is taken for prefill.
    """
    outputs = [report.outputs[0] for report in reports]
    later = [report.host_ms for report in reports[1:]]
    usual = sum(later) / len(later) if later else 0.0
    prefill = max(0.0, reports[0].host_ms - usual)
    return Generation(
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        seconds=seconds,
        steps=len(reports),
        accepted=sum(output.accepted for output in outputs),
        nodes=sum(output.drafted + 1 for output in outputs),
        phases=Phases(
            prefill=prefill,
            draft=sum(report.draft_ms for report in reports),
            verify=sum(report.verify_ms for report in reports),
            host=sum(report.host_ms for report in reports) - prefill,
        ),
    )


class HuggingFaceMethod:
    """`model.generate` as transformers users call it. Its samples come from its own generator."""

    name = "hf"

    def __init__(self, model: Any, task: Task) -> None:
        self.model = model
        self.task = task
        self.has_same_output = task.sampling.temperature == 0
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
    if sampling.temperature == 0:
        return GenerationConfig(do_sample=False, **common)
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p or None,
        **common,
    )


def load_methods(settings: Settings, task: Task, context_length: int) -> list[Method]:
    """The asked methods, in order, with room for `context_length` tokens."""
    methods: dict[str, Method] = {}
    if "hf" in settings.methods:
        methods["hf"] = HuggingFaceMethod(load_model(settings), task)
    if "falcon" in settings.methods:
        engine = load(settings, settings.drafter, context_length)
        methods["falcon"] = EngineMethod("falcon", engine, task)
        methods["ar"] = EngineMethod("ar", engine_with(engine, ROOT_ONLY, None), task)
    elif "ar" in settings.methods:
        methods["ar"] = EngineMethod("ar", load(settings, None, context_length), task)
    return [methods[name] for name in settings.methods]


def load(settings: Settings, drafter: Path | None, context_length: int) -> Engine:
    """An engine with one slot. Raises `BenchmarkError` with what is wrong with the models."""
    config = EngineConfig(
        model=str(settings.model),
        drafter=None if drafter is None else str(drafter),
        dtype=settings.dtype,
        device=settings.device,
        max_model_len=context_length,
        max_num_seqs=1,
        threads=settings.threads,
    )
    try:
        return load_engine(config)
    except (TargetError, DrafterError) as error:
        raise BenchmarkError(str(error)) from error


def engine_with(engine: Engine, tree: Tree, drafter: FalconDrafter | None) -> Engine:
    """Another engine on the same target and KV slots; the two must not run at the same time."""
    block_size = 1 if drafter is None else drafter.block_size
    plan = build_plan(tree, block_size, engine.target.device)
    decoder = SpeculativeDecoder(engine.target, drafter, plan, engine.decoder.sampler)
    return Engine(engine.target, decoder, max_num_seqs=1)


def load_model(settings: Settings) -> Any:
    """The model as transformers runs it by default, in the dtype that the engine chooses."""
    try:
        device = choose_device(settings.device)
        own = AutoConfig.from_pretrained(settings.model, local_files_only=True).dtype
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.model,
            dtype=choose_dtype(settings.dtype, device, own),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{settings.model} cannot be loaded: {error}") from error
    return model.to(device).eval()


def parameter_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
