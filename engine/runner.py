"""Runs prompts and steps on the models; where one fails, a request ends and not the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from drafter.plan import DraftPlan

from .grammar.regexes import GrammarError
from .messages import RequestOutput
from .outcome import Accepted, StepOutput, prompt_output, request_output
from .policy import Policy
from .scheduler import Admission, Chunk, Scheduler
from .scoring import score_prompt
from .sequence import Sequence
from .speculative import SpeculativeDecoder

logger = logging.getLogger(__name__)

_DEAD_END = "no token of the served model goes on with the grammar behind the text so far"


class Runner:
    """Does what `policy` chose for the sequences of `scheduler`, and releases those that end.

    A fault of the drafter costs speed only. What else fails is tried again without a draft, alone;
    a request that fails then ends with an error.
    """

    def __init__(self, decoder: SpeculativeDecoder, scheduler: Scheduler, policy: Policy) -> None:
        self.decoder = decoder
        self.scheduler = scheduler
        self.policy = policy
        self.target = decoder.target

    def reuse(self, admission: Admission) -> None:
        """Bring the cached prefix into the sequence's slot, for target and drafter."""
        sequence = admission.sequence
        self.target.copy_prefix(admission.source, sequence.slot, sequence.length)
        if (drafter := self.decoder.drafter) is not None:
            # Position i holds the token after it: the last one is not known to be shared.
            shared = max(0, sequence.length - 1)
            self._with_drafter(
                sequence, lambda: drafter.adopt(sequence.slot, admission.source, shared)
            )

    def prefill(self, chunks: Iterable[Chunk]) -> list[RequestOutput]:
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

    def decode(
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
