"""Engines without and with speculation, of which the second are told what to propose."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fakes import SMALL_TREE, save_random_drafter

from engine.config import EngineConfig
from engine.drafts import Drafts
from engine.engine import Engine
from engine.loading import load_engine
from engine.messages import RequestOutput, Submit
from engine.sequence import Sequence


def run(engine: Engine, submit: Submit) -> list[RequestOutput]:
    engine.submit(submit)
    outputs = []
    while engine.has_work:
        outputs += engine.step().outputs
    return outputs


def ids_of(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


class Proposals:
    """Makes an engine's drafter propose `answer`: along the chain, a side branch, or in part."""

    def __init__(self, engine: Engine) -> None:
        self.answer: list[int] = []
        self._original = engine.decoder.draft
        engine.decoder.draft = self._draft  # type: ignore[method-assign]

    def _draft(self, sequences: list[Sequence], *plan: Any) -> Drafts:
        drafts = self._original(sequences, *plan)
        if drafts.tokens.shape[1] == SMALL_TREE.num_nodes:
            for row, sequence in zip(drafts.tokens, sequences, strict=True):
                self._propose(row, sequence)
        return drafts

    def _propose(self, row: torch.Tensor, sequence: Sequence) -> None:
        done = sequence.num_output + len(sequence.provisional)
        chain = [(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)]
        path = [chain, [(1,), (1, 0)], chain[:2]][done % 3]
        row[1:] = (int(row[0]) + 1) % 64
        for node, token in zip(path, self.answer[done:], strict=False):
            row[SMALL_TREE.paths.index(node)] = token


class Engines:
    """Plain ones, and speculating ones that are told what to propose."""

    def __init__(self, target: Path, folder: Path) -> None:
        self._target = str(target)
        self._drafter = str(save_random_drafter(target, folder))
        self.plain = {dtype: self._load(None, dtype) for dtype in ("float32", "bfloat16")}
        self.falcon = {
            "float32": self._load(self._drafter, "float32"),
            "bfloat16": self._load(self._drafter, "bfloat16"),
        }
        self.proposals = {name: Proposals(engine) for name, engine in self.falcon.items()}

    def _load(self, drafter: str | None, dtype: Literal["float32", "bfloat16"] | str) -> Engine:
        config = {"model": self._target, "drafter": drafter, "dtype": dtype, "max_num_seqs": 3}
        speculation = "off" if drafter is None else "always"
        return load_engine(EngineConfig(**config, speculation=speculation))  # type: ignore[arg-type]

    def check(self, name: str, submit: Submit) -> list[RequestOutput]:
        """Speculation gives plain decoding's tokens and reports; its outputs."""
        expected = run(self.plain[name], submit)
        self.proposals[name].answer = ids_of(expected)
        outputs = run(self.falcon[name], submit)
        assert ids_of(outputs) == ids_of(expected)
        assert outputs[-1].finish_reason == expected[-1].finish_reason
        scores = [entry for output in outputs for entry in output.logprobs]
        plain = [entry for output in expected for entry in output.logprobs]
        assert len(scores) == (0 if submit.logprobs is None else len(ids_of(outputs)))
        assert [entry.top_ids for entry in scores] == [entry.top_ids for entry in plain]
        for own, other in zip(scores, plain, strict=True):
            assert own.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert own.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-4)
        return outputs
