"""The engine for scripts, in this process.

from engine import LLM, SamplingParams

llm = LLM("models/demo/target", drafter="models/demo/drafter")
for answer in llm.generate(["Once upon a time"], SamplingParams(temperature=0.7, seed=1)):
    print(answer.text)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import Progress
from transformers import AutoTokenizer

from .config import EngineConfig
from .loading import load_engine
from .messages import FinishReason, Grammar, SamplingParams, Submit

Prompt = str | Sequence[int] | Sequence[dict[str, str]]  # text, token ids, or chat messages


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: its text without special tokens, its ids, and why it ended."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


class LLM:
    """A target and its drafter, loaded once. Not thread-safe."""

    def __init__(
        self, model: str | Path, drafter: str | Path | None = None, **options: Any
    ) -> None:
        """Prompts and answers are looked up in themselves too (`prompt_lookup`).

        `options` are the other fields of `EngineConfig`; `prompt_lookup` may be a dict.

        Raises `ValueError` or `TypeError` for an option that cannot be, by its name, and
        `TargetError` or `DrafterError` with what is wrong with the folders.
        """
        folder = None if drafter is None else str(drafter)
        config = EngineConfig(model=str(model), drafter=folder, **options)
        # A struct takes anything when it is made; it is checked when it is read.
        self.engine = load_engine(msgspec.convert(msgspec.to_builtins(config), EngineConfig))
        untyped: Any = AutoTokenizer
        self.tokenizer = untyped.from_pretrained(model, local_files_only=True)

    def close(self) -> None:
        """End the processes of `tensor_parallel_size`, which else end with this one."""
        self.engine.target.close()

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer, by the generation config and the tokenizer."""
        own = self.tokenizer.eos_token_id
        return sorted({*self.engine.target.end_ids, *([] if own is None else [own])})

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams | None = None,
        max_tokens: int = 256,
        shows_progress: bool = True,
        grammar: Grammar | None = None,
    ) -> list[Completion]:
        """One answer to each prompt, in order; as many at once as the engine has slots.

        Without `sampling` answers are greedy. Raises `ValueError` for a prompt that does not fit
        the context with `max_tokens`, before anything is computed, and for a grammar that cannot be
        followed.
        """
        sampling = sampling or SamplingParams(temperature=0.0)
        requests = [
            Submit(
                str(number),
                self.encode(prompt),
                max_tokens,
                sampling,
                self.end_ids,
                grammar=grammar,
            )
            for number, prompt in enumerate(prompts)
        ]
        for request in requests:
            self.engine.check(request)
        ids, reasons = self._run(requests, shows_progress)
        return [
            Completion(self.tokenizer.decode(own, skip_special_tokens=True), own, reason)
            for own, reason in zip(ids, reasons, strict=True)
        ]

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a text as it stands, or of messages by the model's chat template."""
        if isinstance(prompt, str):
            return list(self.tokenizer.encode(prompt))
        if prompt and isinstance(prompt[0], dict):
            encoded = self.tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, return_dict=True
            )
            return list(encoded["input_ids"])
        return [int(token) for token in prompt]  # type: ignore[arg-type]  # dicts are gone

    def _run(
        self, requests: Iterable[Submit], shows_progress: bool
    ) -> tuple[list[list[int]], list[FinishReason]]:
        """Step until all are done; ids and finish reasons by request."""
        for request in (pending := list(requests)):
            self.engine.submit(request)
        ids: list[list[int]] = [[] for _ in pending]
        reasons: list[FinishReason] = ["error" for _ in pending]
        try:
            with Progress(disable=not shows_progress) as bar:
                task = bar.add_task("generate", total=len(pending))
                while self.engine.has_work:
                    for output in self.engine.step().outputs:
                        if output.refusal:
                            raise ValueError(output.refusal)
                        ids[int(output.request_id)] += output.token_ids
                        if output.finish_reason is not None:
                            reasons[int(output.request_id)] = output.finish_reason
                            bar.advance(task)
        except BaseException as error:
            if not isinstance(error, ValueError):  # ranks may have been left within a forward
                self.close()
            raise
        finally:
            for request in pending:  # after an interrupt the engine must be empty again
                self.engine.abort(request.request_id)
        return ids, reasons
