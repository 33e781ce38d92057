"""The engine: gives requests slots, prefills and steps them, cuts and reports their tokens."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import msgspec
import torch

from drafter.plan import DraftPlan

from .config import NGrams
from .grammar.regexes import GrammarError
from .grammars import Grammars
from .messages import PlainReason, RequestOutput, StepReport, Submit
from .outcome import Accepted, StepOutput, prompt_output, request_output
from .planner import Planner
from .policy import Policy, plan_name
from .processors import check_ids
from .scheduler import Admission, Chunk, Scheduler
from .scoring import check_scores, score_prompt
from .sequence import Sequence
from .speculative import SpeculativeDecoder
from .target import Target

logger = logging.getLogger(__name__)

_DEAD_END = "no token of the served model goes on with the grammar behind the text so far"
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
        self.decoder = decoder
        self.policy = Policy(target.device, planner, row_limit, predicts, ngrams)
        self.grammars = grammars
        self.scheduler = Scheduler(max_num_seqs)

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
            self._reuse(admission)
        chunks = self.scheduler.chunks(PREFILL_BUDGET)
        outputs += [*self._prefill(chunks), *self._end_prompts()]
        prefilled = time.perf_counter()
        steps: list[StepOutput] = []
        plans: Counter[str] = Counter()
        plain: Counter[PlainReason] = Counter()
        has_drafter = self.decoder.drafter is not None
        for plan, group in self.policy.groups(self.scheduler.running, self.decoder):
            plans.update(plan_name(sequence, plan) for sequence in group)
            undrafted = [s for s in group if not (plan.passes or s.stretch)]
            plain.update(self.policy.why_plain(s, has_drafter) for s in undrafted)
            step, own = self._decode(group, plan)
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

    def _reuse(self, admission: Admission) -> None:
        """Bring the cached prefix into the sequence's slot, for target and drafter."""
        sequence = admission.sequence
        if self.grammars is not None:
            sequence.matcher = self.grammars.matcher(sequence.request)
        self.target.copy_prefix(admission.source, sequence.slot, sequence.length)
        if (drafter := self.decoder.drafter) is not None:
            # Position i holds the token after it: the last one is not known to be shared.
            shared = max(0, sequence.length - 1)
            self._with_drafter(
                sequence, lambda: drafter.adopt(sequence.slot, admission.source, shared)
            )

    def _prefill(self, chunks: Iterable[Chunk]) -> list[RequestOutput]:
        """Run chunks of prompts; scores, and the ends of what failed."""
        outputs = []
        for chunk in chunks:
            sequence = chunk.sequence
            try:
                scores = score_prompt(self.target, chunk) if self.decoder.prefill(chunk) else None
            except Exception:
                if self._is_broken:
                    raise
                logger.exception("prefilling request %s failed", sequence.request.request_id)
                scores = None
            if scores is None:
                outputs.append(self._fail(sequence))
                continue
            if scores:
                outputs.append(prompt_output(sequence, scores))
            if self.policy.drafts and sequence.speculates and self.decoder.drafter is not None:
                self._with_drafter(sequence, partial(self.decoder.drafts.catch_up, sequence))
        return outputs

    def _end_prompts(self) -> list[RequestOutput]:
        """The ends of requests that wanted no token behind their prompt, which is read now."""
        ended = [s for s in self.scheduler.running if s.request.max_tokens == 0]
        for sequence in ended:
            sequence.finish_reason = "length"
            self.scheduler.release(sequence)
        return [prompt_output(sequence) for sequence in ended]

    def _with_drafter(self, sequence: Sequence, act: Callable[[], None]) -> None:
        """Do something with the drafter; where it fails, the request goes on without it."""
        try:
            act()
        except Exception:
            if self._is_broken:
                raise
            logger.exception("request %s goes on plainly", sequence.request.request_id)
            sequence.speculates = False
            assert self.decoder.drafter is not None
            self.decoder.drafter.lengths[sequence.slot] = 0  # nobody adopts what it holds

    def _decode(
        self, group: list[Sequence], plan: DraftPlan
    ) -> tuple[list[StepOutput], list[RequestOutput]]:
        """Step a group. If that raises, each member is stepped alone; who raises again fails."""
        try:
            step = self.decoder.step(group, plan)
        except GrammarError:  # of one of them, which fails by itself
            result = self._decode_alone(group)
            self._speculate_again(group)
            return result
        except Exception:
            if self._is_broken:
                raise
            logger.exception("a step of %d requests failed", len(group))
            return self._decode_alone(group)
        steps, outputs = [step], []
        for sequence, path in zip(group, step.accepted, strict=True):
            if path.is_sound or not path.num_drafted:
                outputs.append(self._output(sequence, path, plan, step))
                continue
            # A drafted row may be at fault, not the request's own tokens: once more without it.
            self.target.scrub(sequence.slot, sequence.length)
            alone, own = self._decode_alone([sequence])
            steps += alone
            outputs += own
        return steps, outputs

    def _decode_alone(self, group: list[Sequence]) -> tuple[list[StepOutput], list[RequestOutput]]:
        """Step each sequence by itself and without drafting, from what is committed."""
        steps, outputs = [], []
        for sequence in group:
            sequence.speculates = False
            sequence.provisional, sequence.stretch = [], []
            try:
                step = self.decoder.step([sequence], self.policy.plain)
            except GrammarError as error:
                outputs.append(self._fail(sequence, str(error)))
            except Exception:
                if self._is_broken:
                    raise
                logger.exception("request %s failed", sequence.request.request_id)
                outputs.append(self._fail(sequence))
            else:
                steps.append(step)
                outputs.append(self._output(sequence, step.accepted[0], self.policy.plain, step))
        if any(output.finish_reason == "error" for output in outputs):
            self._speculate_again(group)  # that one was the cause
        return steps, outputs

    def _speculate_again(self, group: list[Sequence]) -> None:
        """Draft again for those of a group that are still running, from what is committed."""
        for sequence in group:
            if sequence.request.request_id not in self.scheduler.sequences:
                continue
            sequence.speculates = sequence.request.speculative
            if self.decoder.drafter is not None:
                self.decoder.drafter.rewind(sequence.slot, sequence.length)

    @property
    def _is_broken(self) -> bool:
        """Whether the process has to end after an error.

        A CUDA device gives nothing but errors then, and other ranks may have done what this one
        has not.
        """
        return self.target.device.type == "cuda" or self.target.ranks is not None

    def _output(
        self, sequence: Sequence, path: Accepted, plan: DraftPlan, step: StepOutput
    ) -> RequestOutput:
        if not path.is_sound:
            logger.error("request %s met logits that are not finite", sequence.request.request_id)
            return self._fail(sequence)
        if self.policy.planner is not None and plan.passes and not path.stretch:
            self.policy.planner.learn(plan, path.drafted, step.passes)
        taken = sequence.append(path.picks)
        sequence.finish_reason = sequence.finish_reason or path.closing
        if sequence.finish_reason is not None:
            self.scheduler.release(sequence)
        refusal = _DEAD_END if sequence.finish_reason == "error" else ""
        output = request_output(sequence, path, taken, step)
        return msgspec.structs.replace(output, refusal=refusal) if refusal else output

    def _fail(self, sequence: Sequence, refusal: str = "") -> RequestOutput:
        """End one request with an error, and leave nothing of it in its slot."""
        self.scheduler.release(sequence, is_sound=False)
        self.target.scrub(sequence.slot)
        if self.decoder.drafter is not None:
            self.decoder.drafter.reset(sequence.slot)
        sequence.finish_reason = "error"
        return msgspec.structs.replace(prompt_output(sequence), refusal=refusal)
