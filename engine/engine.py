"""The engine: gives requests slots, lets them be prefilled and stepped, reports their tokens."""

from __future__ import annotations

import time
from collections import Counter

import msgspec
import torch

from .config import NGrams
from .grammars import Grammars
from .messages import PlainReason, RequestOutput, StepReport, Submit
from .outcome import StepOutput, prompt_output
from .planner import Planner
from .policy import Policy, plan_name
from .processors import check_ids
from .runner import Runner
from .scheduler import Scheduler
from .scoring import check_scores
from .speculative import SpeculativeDecoder
from .target import Target

PREFILL_BUDGET = 256  # prompt tokens between two decoding steps
GRAMMAR_SECONDS = 0.02  # to wait for a grammar where there is nothing else to do


class Engine:
    """Everything that lives across steps. Not thread-safe; one caller steps it.

    `planner`, `row_limit`, `predicts` and `ngrams` are the `Policy`'s. Without `grammars` requests
    that have one are refused.
    """

    def __init__(
        self,
        target: Target,
        decoder: SpeculativeDecoder,
        max_num_seqs: int,
        planner: Planner | None = None,
        row_limit: int | None = None,
        predicts: bool = True,
        grammars: Grammars | None = None,
        ngrams: NGrams | None = None,
    ) -> None:
        self.target = target
        self.policy = Policy(target.device, planner, row_limit, predicts, ngrams)
        self.grammars = grammars
        self.scheduler = Scheduler(max_num_seqs)
        self.runner = Runner(decoder, self.scheduler, self.policy)

    @property
    def decoder(self) -> SpeculativeDecoder:
        return self.runner.decoder

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._num_compiling > 0

    @property
    def _num_compiling(self) -> int:
        return 0 if self.grammars is None else self.grammars.num_waiting

    def submit(self, request: Submit) -> None:
        """Queue a request, once its grammar is compiled. Raises `ValueError` as `check` does."""
        self.check(request)
        if request.grammar is None:
            self.scheduler.submit(request)
        else:
            assert self.grammars is not None
            self.grammars.submit(request)

    def check(self, request: Submit) -> None:
        """Raise `ValueError` unless the request fits: a prompt of known ids, not empty, that leaves
        room for `max_tokens` in the context, a prediction no longer than that, and scores that can
        be given.
        """
        total = len(request.prompt_ids) + request.max_tokens
        if not request.prompt_ids or request.max_tokens < 0 or total > self.target.context_length:
            raise ValueError(
                f"prompt of {len(request.prompt_ids)} + max_tokens {request.max_tokens} must be "
                f"within 1 and {self.target.context_length}"
            )
        if len(request.prediction_ids) > self.target.context_length:
            raise ValueError(
                f"prediction of {len(request.prediction_ids)}; at most {self.target.context_length}"
            )
        check_ids(request, self.target.vocab_size)
        if len(request.output_ids) >= max(1, request.max_tokens):
            raise ValueError(f"max_tokens {request.max_tokens} are out already")
        check_scores(request, self.target)
        if request.grammar is not None and self.grammars is None:
            raise ValueError("this engine was made without grammars")

    def abort(self, request_id: str) -> None:
        """Forget a request, waiting or running; its slot is free before the next step."""
        self.scheduler.abort(request_id)
        if self.grammars is not None:
            self.grammars.abort(request_id)

    @torch.inference_mode()
    def step(self) -> StepReport:
        """Admit what fits, prefill a chunk, then one speculative step for every running request."""
        outputs = self._settle_grammars()
        start = time.perf_counter()
        admitted = self.scheduler.admit()
        for admission in admitted:
            admission.sequence.admitted = start
            if self.grammars is not None:
                admission.sequence.matcher = self.grammars.matcher(admission.sequence.request)
            self.runner.reuse(admission)
        chunks = self.scheduler.chunks(PREFILL_BUDGET)
        outputs += [*self.runner.prefill(chunks), *self._end_prompts()]
        prefilled = time.perf_counter()
        steps: list[StepOutput] = []
        plans: Counter[str] = Counter()
        plain: Counter[PlainReason] = Counter()
        has_drafter = self.decoder.drafter is not None
        for plan, group in self.policy.groups(self.scheduler.running, self.decoder):
            plans.update(plan_name(sequence, plan) for sequence in group)
            undrafted = [s for s in group if not (plan.passes or s.stretch)]
            plain.update(self.policy.why_plain(s, has_drafter) for s in undrafted)
            step, own = self.runner.decode(group, plan)
            steps += step
            outputs += own
        draft_ms = sum(step.draft_ms for step in steps)
        verify_ms = sum(step.verify_ms for step in steps)
        return msgspec.structs.replace(
            self.report(outputs),
            prefill_ms=1e3 * (prefilled - start),
            draft_ms=draft_ms,
            verify_ms=verify_ms,
            host_ms=1e3 * (time.perf_counter() - prefilled) - draft_ms - verify_ms,
            passes=sum(step.passes for step in steps),
            computed_tokens=len(admitted) + sum(chunk.stop - chunk.start for chunk in chunks),
            cached_tokens=sum(admission.sequence.cached_tokens for admission in admitted),
            plans=plans,
            plain=plain,
        )

    def report(self, outputs: list[RequestOutput]) -> StepReport:
        """What to tell the server of these outputs, and how full the engine is now."""
        held = sum(s.length for s in self.scheduler.sequences.values())
        drafted = [output for output in outputs if output.drafted]
        return StepReport(
            outputs=outputs,
            running=len(self.scheduler.sequences),
            waiting=self.scheduler.num_waiting + self._num_compiling,
            kv_usage=held / (self.target.context_length * len(self.scheduler.slots)),
            drafted=sum(output.drafted for output in drafted),
            accepted_lengths=[output.accepted for output in drafted],
            depths=[output.depth for output in drafted if not output.predicted],
        )

    def _settle_grammars(self) -> list[RequestOutput]:
        """Queue the requests whose grammars are compiled; the outputs of those refused."""
        if self.grammars is None:
            return []
        idle = 0.0 if self.scheduler.has_work else GRAMMAR_SECONDS
        ready, refused = self.grammars.settle(idle)
        for request in ready:
            self.scheduler.submit(request)
        return [
            RequestOutput(request.request_id, [], "error", 0, 0, refusal=reason)
            for request, reason in refused
        ]

    def _end_prompts(self) -> list[RequestOutput]:
        """The ends of requests that wanted no token behind their prompt, which is read now."""
        ended = [s for s in self.scheduler.running if s.request.max_tokens == 0]
        for sequence in ended:
            sequence.finish_reason = "length"
            self.scheduler.release(sequence)
        return [prompt_output(sequence) for sequence in ended]
