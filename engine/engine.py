"""The engine: gives requests slots, prefills and steps them, cuts and reports their tokens."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch

from drafter.checkpoint import check_fit, load_drafter, load_tree, target_fingerprint
from drafter.config import DrafterError
from drafter.drafting import FalconDrafter
from drafter.model import MAX_FED_BACK, FalconHead
from drafter.plan import DraftPlan, build_plan
from tree.drawing import summarize
from tree.topology import ROOT_ONLY, Tree

from .config import EngineConfig
from .costs import measure_costs
from .messages import Ready, RequestOutput, SamplingParams, StepReport, Submit
from .packing import pack_linears
from .planner import Planner, prior_reach, subtrees
from .processors import check_ids
from .rows import rows_each
from .sampling import Sampler
from .scheduler import Admission, Scheduler
from .sequence import Sequence
from .speculative import MAX_CPU_ROWS, Accepted, SpeculativeDecoder, StepOutput
from .target import Target, load_target

logger = logging.getLogger(__name__)

PREFILL_BUDGET = 256  # prompt tokens between two decoding steps


class Engine:
    """Everything that lives across steps. Not thread-safe; one caller steps it.

    Without a `planner` every step drafts the decoder's whole plan. `row_limit` bounds the rows of
    one forward where a row's bits must not depend on how many run with it.
    """

    def __init__(
        self,
        target: Target,
        decoder: SpeculativeDecoder,
        max_num_seqs: int,
        planner: Planner | None = None,
        row_limit: int | None = None,
    ) -> None:
        self.target = target
        self.decoder = decoder
        self.planner = planner
        self.row_limit = row_limit
        self.scheduler = Scheduler(max_num_seqs)
        self.plain = build_plan(ROOT_ONLY, 1, target.device)
        self._drafts = True  # whether the last choice was to draft

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def submit(self, request: Submit) -> None:
        """Queue a request. Raises `ValueError` as `check` does."""
        self.check(request)
        self.scheduler.submit(request)

    def check(self, request: Submit) -> None:
        """Raise `ValueError` unless the request fits: a prompt of known ids, not empty, that leaves
        room for `max_tokens` in the context.
        """
        total = len(request.prompt_ids) + request.max_tokens
        if not request.prompt_ids or request.max_tokens < 1 or total > self.target.context_length:
            raise ValueError(
                f"prompt of {len(request.prompt_ids)} + max_tokens {request.max_tokens} must be "
                f"within 1 and {self.target.context_length}"
            )
        check_ids(request, self.target.vocab_size)
        if len(request.output_ids) >= request.max_tokens:
            raise ValueError(f"max_tokens {request.max_tokens} are out already")

    def abort(self, request_id: str) -> None:
        """Forget a request, waiting or running; its slot is free before the next step."""
        self.scheduler.abort(request_id)

    @torch.inference_mode()
    def step(self) -> StepReport:
        """Admit what fits, prefill a chunk, then one speculative step for every running request."""
        start = time.perf_counter()
        admitted = self.scheduler.admit()
        for admission in admitted:
            self._reuse(admission)
        outputs = self._prefill()
        prefilled = time.perf_counter()
        steps: list[StepOutput] = []
        passes = 0
        for plan, group in self._groups():
            step, own = self._decode(group, plan)
            steps += step
            outputs += own
            passes += len(plan.passes)
        draft_ms = sum(step.draft_ms for step in steps)
        verify_ms = sum(step.verify_ms for step in steps)
        return self.report(
            outputs,
            prefill_ms=1e3 * (prefilled - start),
            draft_ms=draft_ms,
            verify_ms=verify_ms,
            host_ms=1e3 * (time.perf_counter() - prefilled) - draft_ms - verify_ms,
            passes=passes,
            prompt_tokens=sum(len(a.sequence.request.prompt_ids) for a in admitted),
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
        held = sum(s.length for s in self.scheduler.sequences.values())
        return StepReport(
            outputs=outputs,
            running=len(self.scheduler.sequences),
            waiting=self.scheduler.num_waiting,
            prefill_ms=prefill_ms,
            draft_ms=draft_ms,
            verify_ms=verify_ms,
            host_ms=host_ms,
            passes=passes,
            drafted=sum(output.drafted for output in outputs),
            accepted_lengths=[output.accepted for output in outputs if output.drafted],
            prompt_tokens=prompt_tokens,
            kv_usage=held / (self.target.context_length * len(self.scheduler.slots)),
        )

    def _reuse(self, admission: Admission) -> None:
        """Bring the cached prefix into the sequence's slot, for target and drafter."""
        sequence = admission.sequence
        self.target.copy_prefix(admission.source, sequence.slot, sequence.length)
        if self.decoder.drafter is not None:
            # Position i holds the token after it: the last one is not known to be shared.
            shared = max(0, sequence.length - 1)
            self.decoder.drafter.adopt(sequence.slot, admission.source, shared)

    def _prefill(self) -> list[RequestOutput]:
        """One budget of prompt tokens, oldest first; the outputs of prompts that failed."""
        failed = []
        for chunk in self.scheduler.chunks(PREFILL_BUDGET):
            sequence = chunk.sequence
            try:
                is_sound = self.decoder.prefill(chunk, self._drafts and sequence.speculates)
            except Exception:
                if self._is_broken:
                    raise
                logger.exception("prefilling request %s failed", sequence.request.request_id)
                is_sound = False
            if not is_sound:
                failed.append(self._fail(sequence))
        return failed

    def _plan(self, batch: int) -> DraftPlan:
        if self.decoder.drafter is None:
            return self.plain
        return self.decoder.plan if self.planner is None else self.planner.choose(batch)

    def _groups(self) -> Iterable[tuple[DraftPlan, list[Sequence]]]:
        """The running requests in batches that share a forward, each with its plan."""
        running = sorted(self.scheduler.running, key=lambda sequence: sequence.slot)
        drafting = [s for s in running if s.speculates]
        plain = [s for s in running if not s.speculates]
        chosen = self._plan(len(drafting)) if drafting else self.plain
        self._drafts = bool(chosen.passes) or not drafting
        for plan, members in ((chosen, drafting), (self.plain, plain)):
            size = self._together(plan) or len(members)
            for first in range(0, len(members), max(1, size)):
                yield plan, members[first : first + size]

    def _together(self, plan: DraftPlan) -> int | None:
        """How many requests may share a forward; None for any number."""
        if self.row_limit is None:
            return None
        needed = plan.tree.num_nodes + self.decoder.max_provisional
        return max(1, self.row_limit // rows_each(needed, self.row_limit))

    def _decode(
        self, group: list[Sequence], plan: DraftPlan
    ) -> tuple[list[StepOutput], list[RequestOutput]]:
        """Step a group. If that raises, each member is stepped alone; who raises again fails."""
        try:
            step = self.decoder.step(group, plan)
        except Exception:
            if self._is_broken:
                raise
            logger.exception("a step of %d requests failed", len(group))
            return self._decode_alone(group)
        outputs = [
            self._output(sequence, path, plan)
            for sequence, path in zip(group, step.accepted, strict=True)
        ]
        return [step], outputs

    def _decode_alone(self, group: list[Sequence]) -> tuple[list[StepOutput], list[RequestOutput]]:
        """Step each sequence by itself and without drafting, from what is committed."""
        steps, outputs = [], []
        for sequence in group:
            sequence.speculates = False
            sequence.provisional = []
            try:
                step = self.decoder.step([sequence], self.plain)
            except Exception:
                logger.exception("request %s failed", sequence.request.request_id)
                outputs.append(self._fail(sequence))
            else:
                steps.append(step)
                outputs.append(self._output(sequence, step.accepted[0], self.plain))
        return steps, outputs

    @property
    def _is_broken(self) -> bool:
        """After an error a CUDA device gives nothing but errors: the process has to end."""
        return bool(self.target.device.type == "cuda")

    def _output(self, sequence: Sequence, path: Accepted, plan: DraftPlan) -> RequestOutput:
        if not path.is_sound:
            logger.error("request %s met logits that are not finite", sequence.request.request_id)
            return self._fail(sequence)
        if self.planner is not None and plan.passes:
            self.planner.learn(plan, [plan.tree.paths[node] for node in path.drafted])
        taken = sequence.append(path.picks)
        if sequence.finish_reason is not None:
            self.scheduler.release(sequence)
        return RequestOutput(
            request_id=sequence.request.request_id,
            token_ids=taken,
            finish_reason=sequence.finish_reason,
            drafted=plan.tree.num_nodes - 1,
            accepted=min(len(taken), len(path.picks) - 1),
            cached_tokens=sequence.cached_tokens,
            logprobs=path.logprobs[: len(taken)],
        )

    def _fail(self, sequence: Sequence) -> RequestOutput:
        """End one request with an error, and leave nothing of it in its slot."""
        self.scheduler.release(sequence, is_sound=False)
        self.target.scrub(sequence.slot)
        if self.decoder.drafter is not None:
            self.decoder.drafter.reset(sequence.slot)
        request_id, cached = sequence.request.request_id, sequence.cached_tokens
        return RequestOutput(request_id, [], "error", 0, 0, cached)


def load_engine(config: EngineConfig, tree: Tree | None = None) -> Engine:
    """Load target and drafter; `tree` overrides the drafter's own plan.

    Raises `TargetError` or `DrafterError` with what is wrong.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    target = load_target(config)
    sampler = Sampler(target.vocab_size, target.device)
    if config.drafter is None or config.speculation == "off":
        drafter, plan = None, build_plan(ROOT_ONLY, 1, target.device)
    else:
        head = load_drafter(config.drafter)
        fingerprint = target_fingerprint(config.model)
        check_fit(head.config, target.hidden_size, target.vocab_size, fingerprint)
        tree = load_tree(config.drafter) if tree is None else tree
        check_rows(tree, target)
        plan = build_plan(tree, head.config.block_size, target.device)
        head = head.to(target.device, target.dtype)
        head.arrange()
        pack_linears(head)
        drafter = fit_drafter(head, plan, target, config.max_num_seqs) if plan.passes else None
    decoder = SpeculativeDecoder(target, drafter, plan, sampler)
    row_limit = MAX_CPU_ROWS if config.deterministic and target.device.type == "cpu" else None
    target.prefill_rows = row_limit or target.prefill_rows
    planner = None
    if drafter is not None and config.speculation == "auto":
        planner = make_planner(decoder, drafter, config.max_num_seqs, row_limit)
    return Engine(target, decoder, config.max_num_seqs, planner, row_limit)


def make_planner(
    decoder: SpeculativeDecoder, drafter: FalconDrafter, num_slots: int, row_limit: int | None
) -> Planner:
    """A planner over the parts of the decoder's plan, with this device's times."""
    target, plan = decoder.target, decoder.plan
    reach = prior_reach(plan.tree)
    plans = [
        plan if part == plan.tree else build_plan(part, drafter.block_size, target.device)
        for part in subtrees(plan.tree, drafter.block_size, reach)
    ]
    return Planner(plans, measure_costs(target, drafter, plan, num_slots, row_limit), reach)


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
    capacity = target.context_length + 2 * MAX_FED_BACK  # provisional and drafted tokens
    return FalconDrafter(head, target.parts, num_slots, capacity, plan.num_rows)


def warm_up(engine: Engine) -> None:
    """Run one short request, so that the first user does not pay for first-call set-up."""
    request = Submit("warm-up", [1, 2, 3], 8, SamplingParams(temperature=0.0), [])
    engine.submit(request)
    while engine.has_work:
        engine.step()


def describe(engine: Engine, config: EngineConfig) -> Ready:
    """What the operator is told at start."""
    plan = engine.decoder.plan
    whole = f"{summarize(plan.tree)}, {len(plan.passes)} passes"
    return Ready(
        target=config.model,
        drafter=config.drafter,
        plan=f"up to {whole}" if engine.planner is not None else whole,
        dtype=str(engine.target.dtype).removeprefix("torch."),
        device=str(engine.target.device),
        context_length=engine.target.context_length,
        max_num_seqs=config.max_num_seqs,
    )
