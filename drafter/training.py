"""The training loop of a drafter (paper §3.2): frozen target, a drafter's head, CSGD.

    batch -> target features (no gradients) -> the head -> losses -> AdamW

What is learned is a function of the data, the settings and the seed: a run that was stopped and
resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .curves import append_record, draw_curves, rewind_log
from .data import Batch, Example, collate, plan_batches
from .distillation import Losses, LossWeights
from .evaluation import Evaluation, evaluate
from .features import StoredFeatures
from .heads import new_head
from .progress import RunIdentity, RunState, load_run, save_run
from .settings import TrainingSettings, learning_rate_at
from .target import FrozenTarget
from .teaching import teaching_of

log = logging.getLogger(__name__)


class Trainer:
    """One run: its head, its optimizer and where it stands.

    `is_stopping` may be set at any time, by a signal handler for one: the step under way is
    finished and saved. `on_step` is called with the progress, 0 to 1, after every step.
    """

    def __init__(
        self,
        target: FrozenTarget,
        training: list[Example],
        heldout: list[Example],
        identity: RunIdentity,
        out: Path,
        stored: StoredFeatures | None = None,
    ) -> None:
        self.stored = stored
        self.target, self.training, self.heldout = target, training, heldout
        self.identity, self.out = identity, out
        out.mkdir(parents=True, exist_ok=True)
        self.settings: TrainingSettings = identity.settings
        self.state = RunState()
        self.is_stopping = False
        self.on_step: Callable[[float], None] = lambda progress: None
        self.last_evaluation: Evaluation | None = None
        self.evaluated_step = -1
        self.last_loss = 0.0
        torch.manual_seed(self.settings.seed)
        self.head = new_head(identity.drafter).to(target.device).train()
        weights = LossWeights(self.settings.feature_weight, self.settings.token_weight)
        self.teaching = teaching_of(self.head, target.parts, weights, self.settings.noise)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(),
            lr=self.settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=self.settings.weight_decay,
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(self.settings.seed)
        self.total_steps = self._count_steps()

    def resume(self) -> bool:
        """Go on from the checkpoint in `out`; False where there is none."""
        state = load_run(self.out, self.identity, self.head, self.optimizer)
        if state is None:
            return False
        self.state = state
        stored = bytearray.fromhex(state.generator)
        self.generator.set_state(torch.frombuffer(stored, dtype=torch.uint8))
        rewind_log(self.out, state.step)
        log.info("resumed at step %d", state.step)
        return True

    def train(self) -> bool:
        """Train to the end or until `is_stopping`; True when the run is complete."""
        begin = time.perf_counter() - self.state.elapsed
        batches = self._batches()
        while (progress := self.progress()) < 1 and not self.is_stopping:
            batch = next(batches)
            rate = learning_rate_at(progress, self.settings)
            losses, norm = self.step(batch, rate, self.settings.glance * (1 - progress))
            self._record(batch, losses, norm)
            self.state.step += 1
            self.state.elapsed = time.perf_counter() - begin
            self._report(progress, rate)
            self.on_step(self.progress())
        is_complete = self.progress() >= 1
        if is_complete and self.evaluated_step != self.state.step:
            self._evaluate()
        self.save()
        return is_complete

    def progress(self) -> float:
        """Share of the run that is done: by time where `minutes` is set, else by steps."""
        if self.settings.minutes is not None:
            return min(self.state.elapsed / (60 * self.settings.minutes), 1.0)
        return min(self.state.step / self.total_steps, 1.0)

    def step(self, batch: Batch, rate: float, glance: float) -> tuple[Losses, Tensor]:
        """One step: the losses and the norm of the gradient before clipping."""
        known = batch.features
        features = self.target.features(batch.ids) if known is None else known  # [B, S, H]
        with self._autocast():
            losses = self.teaching.losses(batch, features, glance, self.generator)
        losses.total.backward()  # type: ignore[no-untyped-call]  # torch has no stub for it
        maximum = self.settings.max_gradient
        norm = torch.nn.utils.clip_grad_norm_(self.head.parameters(), maximum)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses, norm

    def save(self) -> None:
        """Write a checkpoint from which `resume` goes on bit for bit, and redraw the curves."""
        self.state.generator = self.generator.get_state().numpy().tobytes().hex()
        save_run(self.out, self.identity, self.state, self.head, self.optimizer)
        draw_curves(self.out)

    def _batches(self) -> Iterator[Batch]:
        while True:
            plan = self._plan(self.state.epoch)
            while self.state.position < len(plan):
                indices = plan[self.state.position]
                self.state.position += 1
                batch = collate([self.training[index] for index in indices], self.target.device)
                if self.stored is not None:
                    batch = dataclasses.replace(batch, features=self.stored.of(indices))
                yield batch
            self.state.epoch, self.state.position = self.state.epoch + 1, 0

    def _plan(self, epoch: int) -> list[list[int]]:
        lengths = [len(example) for example in self.training]
        return plan_batches(lengths, self.settings.batch_tokens, self.settings.seed, epoch)

    def _count_steps(self) -> int:
        if self.settings.steps is not None:
            return self.settings.steps
        return sum(len(self._plan(epoch)) for epoch in range(self.settings.epochs))

    def _autocast(self) -> torch.autocast:
        enabled = self.target.dtype == torch.bfloat16
        return torch.autocast(self.target.device.type, torch.bfloat16, enabled=enabled)

    def _record(self, batch: Batch, losses: Losses, norm: Tensor) -> None:
        # sync: one a step, after the work of the step was queued
        values = torch.stack((losses.total, losses.feature, losses.token, norm)).tolist()
        self.last_loss = values[0]
        values.append(float(batch.num_tokens))
        self.state.sums = [old + new for old, new in zip(self.state.sums, values, strict=True)]
        self.state.summed += 1

    def _report(self, progress: float, rate: float) -> None:
        """Log, evaluate and save where the step's number asks for it."""
        step, settings = self.state.step, self.settings
        if step % settings.log_every == 0:
            self._log_losses(progress, rate)
        if step % settings.eval_every == 0:
            self._evaluate()
        if step % settings.save_every == 0:
            self.save()

    def _log_losses(self, progress: float, rate: float) -> None:
        *sums, tokens = self.state.sums
        names = ("loss", "feature_loss", "token_loss", "gradient_norm")
        means = {name: value / self.state.summed for name, value in zip(names, sums, strict=True)}
        place = {"step": self.state.step, "epoch": self.state.epoch, "progress": progress}
        about = {"learning_rate": rate, "tokens": int(tokens), "elapsed": self.state.elapsed}
        append_record(self.out, {"kind": "train"} | place | means | about)
        self.state.sums, self.state.summed = [0.0] * len(self.state.sums), 0

    def _evaluate(self) -> None:
        if not self.heldout:
            return
        lengths = [len(example) for example in self.heldout]
        plan = plan_batches(lengths, self.settings.batch_tokens, self.settings.seed, 0)
        batches = (collate([self.heldout[i] for i in rows], self.target.device) for rows in plan)
        with self._autocast():
            result = evaluate(self.teaching, self.target, batches)
        self.last_evaluation, self.evaluated_step = result, self.state.step
        log.info(
            "step %d: acceptance %s, tau %.3f", self.state.step, result.acceptance, result.tau_block
        )
        append_record(
            self.out, {"kind": "eval", "step": self.state.step} | dataclasses.asdict(result)
        )
