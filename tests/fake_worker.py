"""An engine process without an engine: speaks the wire, answers what the prompt tells it to say.

    python tests/fake_worker.py [--log FILE] [--refuse REASON] [--lives N] [--gate FILE]
        [--loads-until FILE] [--hang] [--no-scores] FD

A user message that is a JSON object steers the answer: `say` (text), `step` (tokens per step; one
without speculation), `delay` (seconds per step), `forever` (say it again and again). `die_after` /
`error_after` count steps of this process, `stall_after` those after which it says nothing more,
`die_at` / `hang_at` tokens of the answer, whoever gave them; with `refusal` the error is the
request's own fault. With `held_until` (a file) an answer stands still after its first step until
the file is there. Any other message is answered with "echo:" and itself, or with the grammar it
came with, and so is a prompt that is no conversation. Where log-probabilities of the prompt are
asked for, a few come in each step. Every start is logged with its process id, and every message
received by kind. With `--lives N` all processes after the N-th die at once, with `--gate FILE` all
after the first load until FILE is there, with `--loads-until FILE` the first one too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from engine.config import EngineConfig
from engine.messages import (
    Abort,
    Forgotten,
    Ping,
    Pong,
    Ready,
    Refused,
    RequestOutput,
    Shutdown,
    Source,
    StepReport,
    StepTrace,
    Submit,
    ToEngine,
    TokenLogprobs,
)
from engine.wire import Connection, to_engine_decoder

SCORES_A_STEP = 5


@dataclass
class Request:
    submit: Submit
    answer: list[int]
    orders: dict[str, object]
    sent: int = 0
    steps: int = 0
    scored: int = 0

    def has_come_to(self, order: str) -> bool:
        at = self.orders.get(order)
        return isinstance(at, int) and self.sent >= at

    @property
    def is_held(self) -> bool:
        file = self.orders.get("held_until")
        return isinstance(file, str) and self.steps > 0 and not Path(file).exists()

    def next_output(self) -> RequestOutput:
        count = self.submit.prompt_logprobs
        if count is not None and self.scored < len(self.submit.prompt_ids) - 1:
            return self.next_scores(count)
        step = int(self.orders.get("step", 2))  # type: ignore[call-overload]  # JSON
        step = step if self.submit.speculative else 1
        while self.orders.get("forever") and self.sent + step >= len(self.answer):
            self.answer = self.answer[:-1] * 2 + self.answer[-1:]
        ids = self.answer[self.sent : self.sent + step]
        ids = ids[: self.submit.max_tokens - self.sent]
        self.sent += len(ids)
        self.steps += 1
        reason = None
        if ids and ids[-1] in self.submit.stop_token_ids:
            reason = "stop"
        elif self.sent >= min(self.submit.max_tokens, len(self.answer)):
            reason = "length"
        if self.steps == self.orders.get("error_after"):
            reason = "error"
        kind: Source = "predicted" if self.submit.prediction_ids else "drafted"
        accepted = max(0, len(ids) - 1)
        asked = self.submit.logprobs
        entry = TokenLogprobs(-0.5, [5] * (asked or 0), [-0.5] * (asked or 0))
        logprobs = [] if asked is None else [entry] * len(ids)
        return RequestOutput(
            self.submit.request_id,
            ids,
            reason,  # type: ignore[arg-type]  # a literal
            drafted=4,
            accepted=accepted,
            cached_tokens=self.cached,
            logprobs=logprobs,
            sources=[*[kind] * accepted, "bonus"],
            predicted=4 if kind == "predicted" else 0,
            rejected_predicted=max(0, 4 - accepted) if kind == "predicted" else 0,
            trace=self.trace(ids) if self.submit.trace else None,
            refusal=str(self.orders.get("refusal", "")) if reason == "error" else "",
        )

    def trace(self, ids: list[int]) -> StepTrace:
        """A chain of all tokens but the last, and beside it what four nodes leave over.

        Without speculation the root stands alone.
        """
        chain = len(ids) - 1
        others = 4 - chain if self.submit.speculative else 0
        return StepTrace(
            tokens=[5, *ids[:-1], *[6] * others],
            parents=[-1, *range(chain), *[0] * others],
            root=0,
            path=list(range(1, chain + 1)),
            provisional=0,
            passes=2,
            draft_ms=0.5,
            verify_ms=1.5,
        )

    @property
    def cached(self) -> int:
        """The last token of a prompt is always computed."""
        return min(3, len(self.submit.prompt_ids) - 1)

    def next_scores(self, count: int) -> RequestOutput:
        tokens = self.submit.prompt_ids[self.scored + 1 : self.scored + 1 + SCORES_A_STEP]
        self.scored += len(tokens)
        self.steps += 1
        if self.steps == self.orders.get("error_after"):
            return RequestOutput(self.submit.request_id, [], "error", 0, 0, self.cached)
        scores = [fake_score(token, count) for token in tokens]
        cached = self.cached
        return RequestOutput(self.submit.request_id, [], None, 0, 0, cached, prompt_logprobs=scores)


def fake_score(token: int, count: int) -> TokenLogprobs:
    """Token t's is -t / 64, and the likeliest ones beside it are t, t + 1, ... with the same."""
    return TokenLogprobs(-token / 64, [token + i for i in range(count)], [-token / 64] * count)


@dataclass
class FakeWorker:
    connection: Connection[ToEngine]
    log: Path | None
    running: dict[str, Request] = field(default_factory=dict)

    def serve(self, args: argparse.Namespace) -> None:
        config, *messages = self.connection.receive(block=True)
        assert isinstance(config, EngineConfig)
        if args.refuse:
            self.connection.send(Refused(args.refuse))
            return
        self.tokenizer = Tokenizer.from_file(f"{config.model}/tokenizer.json")
        length = config.max_model_len or 256
        looks_up = config.drafter is None and config.prompt_lookup is not None
        plan = "3x4" if config.drafter else "prompt lookup" if looks_up else "none"
        sizes = length, 4, args.scores, looks_up
        self.connection.send(Ready("t", config.drafter, plan, "float32", "cpu", *sizes))
        while True:
            for message in messages:
                write_log(self.log, type(message).__name__)
                if isinstance(message, Submit):
                    self.running[message.request_id] = self.admit(message)
                elif isinstance(message, Abort):
                    self.running.pop(message.request_id, None)
                    self.connection.send(Forgotten(message.request_id))
                elif isinstance(message, Ping):
                    self.connection.send(Pong())
                elif isinstance(message, Shutdown):
                    if args.hang:
                        time.sleep(600)
                    return
            if self.running:
                self.step()
            messages = self.connection.receive(block=not self.running)

    def admit(self, submit: Submit) -> Request:
        prompt = self.tokenizer.decode(submit.prompt_ids, skip_special_tokens=False)
        text = prompt.rpartition("<|user|>")[2].partition("<|end|><|assistant|>")[0]
        try:
            orders = json.loads(text)
        except ValueError:
            orders = None
        if not isinstance(orders, dict):
            grammar = submit.grammar
            orders = {"say": f"{grammar.kind} {grammar.text}" if grammar else "echo:" + text}
        end = self.tokenizer.token_to_id("<|end|>")
        assert end is not None
        answer = [*self.tokenizer.encode(orders.get("say", "")).ids, end]
        sent, scored = len(submit.output_ids), submit.scores_given
        return Request(submit, answer, orders, sent, scored=scored)

    def step(self) -> None:
        outputs = []
        free = [request for request in self.running.values() if not request.is_held]
        if not free:
            time.sleep(0.01)
        for request in free:
            time.sleep(float(request.orders.get("delay", 0)))  # type: ignore[arg-type]  # JSON
            if request.steps == request.orders.get("die_after"):
                os._exit(9)
            if request.has_come_to("die_at"):
                os.kill(os.getpid(), signal.SIGKILL)
            if request.has_come_to("hang_at"):
                time.sleep(600)
            if request.steps == request.orders.get("stall_after"):
                time.sleep(0.001)
                continue
            outputs.append(request.next_output())
            if outputs[-1].finish_reason:
                del self.running[request.submit.request_id]
        lengths = [output.accepted for output in outputs]
        running = len(self.running)
        self.connection.send(
            StepReport(
                outputs,
                running,
                waiting=0,
                kv_usage=0.25,
                prefill_ms=0.75,
                draft_ms=0.5,
                verify_ms=1.5,
                host_ms=0.25,
                passes=2,
                drafted=4 * len(lengths),
                accepted_lengths=lengths,
                depths=lengths,
                plans={"4x2": len(lengths)},
            )
        )


def write_log(file: Path | None, line: str) -> None:
    if file:
        with file.open("a") as log:
            log.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("--refuse")
    parser.add_argument("--lives", type=int)
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--loads-until", type=Path)
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--no-scores", action="store_false", dest="scores")
    parser.add_argument("fd", type=int)
    args = parser.parse_args()
    write_log(args.log, f"Start {os.getpid()}")
    lives = args.log.read_text().count("Start") if args.log else 1
    if args.lives is not None and lives > args.lives:
        sys.exit(3)
    while args.gate and lives > 1 and not args.gate.exists():
        time.sleep(0.01)
    while args.loads_until and not args.loads_until.exists():
        time.sleep(0.01)
    try:
        FakeWorker(Connection(socket.socket(fileno=args.fd), to_engine_decoder()), args.log).serve(
            args
        )
    except EOFError:
        sys.exit(0)


if __name__ == "__main__":
    main()
