"""The engine for scripts gives what the engine gives, in order, and is empty afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import save_random_drafter
from tiny_chat import save_chat_target

from engine import LLM, Grammar, SamplingParams
from engine.config import NGrams

PROMPTS = ["once upon", [5, 6, 7], [{"role": "user", "content": "a tale"}], "x"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    target = save_chat_target(tmp_path_factory.mktemp("target"))
    return target, save_random_drafter(target, tmp_path_factory.mktemp("drafter"))


def load(target: Path, drafter: Path | None = None) -> LLM:
    return LLM(target, drafter, dtype="float32", max_num_seqs=2, speculation="always")


def test_answers_come_in_order_and_do_not_depend_on_the_drafter(
    folders: tuple[Path, Path],
) -> None:
    sampling = SamplingParams(temperature=0.9, seed=3)
    plain, falcon = load(folders[0]), load(*folders)
    expected = [plain.generate([prompt], sampling, 20, False)[0] for prompt in PROMPTS]
    assert falcon.generate(PROMPTS, sampling, 20, False) == expected
    assert not falcon.engine.has_work
    for one in expected:
        assert one.finish_reason == ("stop" if one.token_ids[-1] == 1 else "length")
        assert "<end>" not in one.text


def test_messages_are_rendered_by_the_chat_template(folders: tuple[Path, Path]) -> None:
    llm = load(folders[0])
    rendered = "<bos><user>hi<end>\n<assistant>"
    assert llm.encode([{"role": "user", "content": "hi"}]) == llm.encode(rendered)
    assert llm.end_ids == [1]


def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(
    folders: tuple[Path, Path],
) -> None:
    llm = load(folders[0])
    with pytest.raises(ValueError, match="within 1 and 128"):
        llm.generate(["fine", [2] * 120], max_tokens=20, shows_progress=False)
    assert not llm.engine.has_work


def test_answers_follow_a_grammar_that_can_be_followed(folders: tuple[Path, Path]) -> None:
    llm = load(*folders)
    answers = llm.generate(PROMPTS, None, 20, False, Grammar("choice", '["yes", "no"]'))
    assert {answer.text for answer in answers} <= {"yes", "no"}
    with pytest.raises(ValueError, match="lookahead"):
        llm.generate(["x"], None, 20, False, Grammar("regex", "(?=a)"))
    assert not llm.engine.has_work


def test_an_interrupt_leaves_the_engine_empty(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = load(folders[0])

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.engine, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c"], None, 8, False)
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup": True},
        {"prompt_lookup": {"max": 3}},
        {"dtype": "bf16"},
        {"max_num_seqs": 0},
        {"max_model_len": -1},
        {"threads": "two"},
        {"tensor_parallel_size": 0},
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_name(
    folders: tuple[Path, Path], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LLM(folders[0], **options)


def test_prompt_lookup_may_be_a_dict(folders: tuple[Path, Path]) -> None:
    ngrams = LLM(folders[0], prompt_lookup={"prompt_lookup_max": 2}).engine.policy.ngrams
    assert ngrams == NGrams(prompt_lookup_max=2)
