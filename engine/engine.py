"""The engine: admits requests to slots, steps the running ones, cuts and reports their tokens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import torch

from drafter.checkpoint import check_fit, load_drafter, load_tree, target_fingerprint
from drafter.config import DrafterError
from drafter.drafting import DraftPlan, FalconDrafter, build_plan
from drafter.model import MAX_UNROLLED_STEPS, FalconHead
from tree.drawing import summarize
from tree.topology import ROOT_ONLY, Tree

from .config import EngineConfig
from .messages import Ready, RequestOutput, SamplingParams, StepReport, Submit
from .packing import pack_linears
from .sampling import Sampler
from .sequence import Sequence
from .speculative import MAX_CPU_ROWS, SpeculativeDecoder, StepOutput
from .target import Target, load_target


class Engine:
    """Everything that lives across steps. Not thread-safe; one caller steps it."""

    def __init__(self, target: Target, decoder: SpeculativeDecoder, max_num_seqs: int) -> None:
        self.target = target
        self.decoder = decoder
        self.waiting: deque[Submit] = deque()
        self.running: list[Sequence] = []
        self.free_slots = list(reversed(range(max_num_seqs)))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, request: Submit) -> None:
        """Queue a request. Raises `ValueError` unless it fits: a prompt of known ids, not empty,
        that leaves room for `max_tokens` in the context.
        """
        total = len(request.prompt_ids) + request.max_tokens
        if not request.prompt_ids or request.max_tokens < 1 or total > self.target.context_length:
            raise ValueError(
                f"prompt of {len(request.prompt_ids)} + max_tokens {request.max_tokens} must be "
                f"within 1 and {self.target.context_length}"
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self.target.vocab_size:
            raise ValueError(f"prompt ids must be from 0 to {self.target.vocab_size - 1}")
        self.waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Forget a request, waiting or running; its slot is free before the next step."""
        self.waiting = deque(r for r in self.waiting if r.request_id != request_id)
        for sequence in self.running:
            if sequence.request.request_id == request_id:
                self._release(sequence)

    @torch.inference_mode()
    def step(self) -> StepReport:
        """Admit what fits, then one speculative step for every running request."""
        start = time.perf_counter()
        prompt_tokens = self._admit()
        prefilled = time.perf_counter()
        outputs: list[RequestOutput] = []
        steps: list[StepOutput] = []
        for group in self._groups():
            steps.append(self.decoder.step(group))
            outputs += [
                self._output(sequence, path.picks)
                for sequence, path in zip(group, steps[-1].accepted, strict=True)
            ]
        draft_ms = sum(step.draft_ms for step in steps)
        verify_ms = sum(step.verify_ms for step in steps)
        return self.report(
            outputs,
            prefill_ms=1e3 * (prefilled - start),
            draft_ms=draft_ms,
            verify_ms=verify_ms,
            host_ms=1e3 * (time.perf_counter() - prefilled) - draft_ms - verify_ms,
            passes=len(self.decoder.plan.passes) * len(steps),
            prompt_tokens=prompt_tokens,
        )

    def report(
        self,
        outputs: list[RequestOutput],
        prefill_ms: float = 0.0,
        draft_ms: float = 0.0,
        verify_ms: float = 0.0,
        host_ms: float = 0.0,
        passes: int = 0,
        prompt_tokens: int = 0,
    ) -> StepReport:
        """What to tell the server: outputs, times, and how full the engine is now."""
        return StepReport(
            outputs=outputs,
            running=len(self.running),
            waiting=len(self.waiting),
            prefill_ms=prefill_ms,
            draft_ms=draft_ms,
            verify_ms=verify_ms,
            host_ms=host_ms,
            passes=passes,
            drafted=sum(output.drafted for output in outputs),
            accepted_lengths=[output.accepted for output in outputs if output.drafted],
            prompt_tokens=prompt_tokens,
            kv_usage=sum(s.length for s in self.running) / self._capacity(),
        )

    def _admit(self) -> int:
        """Prefill waiting requests, oldest first, while slots are free; prompt tokens taken in."""
        taken = 0
        while self.waiting and self.free_slots:
            sequence = Sequence(self.waiting.popleft(), self.free_slots.pop())
            self.decoder.prefill(sequence)
            self.running.append(sequence)
            taken += len(sequence.ids)
        return taken

    def _groups(self) -> Iterable[list[Sequence]]:
        """The running requests in batches that share a forward without changing any row's bits."""
        size = len(self.running)
        if self.target.device.type == "cpu":
            size = max(1, MAX_CPU_ROWS // self.decoder.max_rows)
        running = list(self.running)
        return [running[i : i + size] for i in range(0, len(running), size)]

    def _output(self, sequence: Sequence, picks: list[int]) -> RequestOutput:
        taken = sequence.append(picks)
        if sequence.finish_reason is not None:
            self._release(sequence)
        return RequestOutput(
            request_id=sequence.request.request_id,
            token_ids=taken,
            finish_reason=sequence.finish_reason,
            drafted=self.decoder.num_drafted,
            accepted=min(len(taken), len(picks) - 1),
        )

    def _release(self, sequence: Sequence) -> None:
        self.running = [s for s in self.running if s is not sequence]
        self.free_slots.append(sequence.slot)

    def _capacity(self) -> int:
        return self.target.context_length * (len(self.running) + len(self.free_slots))


def load_engine(config: EngineConfig, tree: Tree | None = None) -> Engine:
    """Load target and drafter; `tree` overrides the drafter's own plan.

    Raises `TargetError` or `DrafterError` with what is wrong.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    target = load_target(config)
    sampler = Sampler(target.vocab_size, target.device)
    if config.drafter is None:
        drafter, plan = None, build_plan(ROOT_ONLY, 1, target.device)
    else:
        head = load_drafter(config.drafter)
        fingerprint = target_fingerprint(config.model)
        check_fit(head.config, target.hidden_size, target.vocab_size, fingerprint)
        tree = load_tree(config.drafter) if tree is None else tree
        check_rows(tree, target)
        plan = build_plan(tree, head.config.block_size, target.device)
        head = head.to(target.device, target.dtype)
        head.unroll()
        pack_linears(head)
        drafter = fit_drafter(head, plan, target, config.max_num_seqs) if plan.passes else None
    decoder = SpeculativeDecoder(target, drafter, plan, sampler)
    return Engine(target, decoder, config.max_num_seqs)


def check_rows(tree: Tree, target: Target) -> None:
    """Refuse a tree that takes more rows than the CPU computes with plain decoding's bits."""
    limited = target.device.type == "cpu" and not target.exact_branches
    if limited and tree.num_nodes > MAX_CPU_ROWS:
        raise DrafterError(
            f"the drafter's tree has {tree.num_nodes} nodes; in {target.dtype} on a CPU at most "
            f"{MAX_CPU_ROWS} keep the output unchanged: use a smaller tree or float32"
        )


def fit_drafter(head: FalconHead, plan: DraftPlan, target: Target, num_slots: int) -> FalconDrafter:
    """A drafter with slots as long as the target's and room for the plan's block rows."""
    capacity = target.context_length + 2 * MAX_UNROLLED_STEPS  # provisional and drafted tokens
    return FalconDrafter(head, target.parts, num_slots, capacity, plan.num_rows)


def warm_up(engine: Engine) -> None:
    """Run one short request, so that the first user does not pay for first-call set-up."""
    request = Submit("warm-up", [1, 2, 3], 8, SamplingParams(temperature=0.0), [])
    engine.submit(request)
    while engine.has_work:
        engine.step()


def describe(engine: Engine, config: EngineConfig) -> Ready:
    """What the operator is told at start."""
    return Ready(
        target=config.model,
        drafter=config.drafter,
        plan=f"{summarize(engine.decoder.plan.tree)}, {len(engine.decoder.plan.passes)} passes",
        dtype=str(engine.target.dtype).removeprefix("torch."),
        device=str(engine.target.device),
        context_length=engine.target.context_length,
        max_num_seqs=config.max_num_seqs,
    )
