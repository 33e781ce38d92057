"""Grammars in the engine: with speculation the same ids, text that fits, and nobody else harmed."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_pairs import Engines, ids_of, run
from fakes import save_random_drafter
from jsonschema import Draft202012Validator
from text_target import END, VOCAB_SIZE, save_text_target
from tiny_chat import save_chat_target
from tokenizers import Tokenizer

from drafter.plan import DraftPlan
from engine import grammars, matcher
from engine.config import EngineConfig
from engine.drafts import Drafts
from engine.engine import Engine
from engine.grammar.regexes import GrammarError
from engine.loading import load_engine
from engine.messages import Grammar, RequestOutput, SamplingParams, Submit
from engine.sequence import Sequence
from engine.vocabulary import read_vocabulary
from tests.server_harness import build_model_folder

PROMPT = [(5 * i + 3) % 200 + 20 for i in range(9)]
SCHEMA = {
    "type": "object",
    "properties": {
        "s": {"type": "string", "maxLength": 5},
        "n": {"type": "integer", "minimum": 0, "maximum": 120},
        "e": {"enum": ["falcon", "é😀", None]},
        "a": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "o": {"type": "object", "properties": {"x": {"type": "null"}}, "required": ["x"]},
    },
    "required": ["s", "n", "e", "a", "o"],
}
SENTENCE = {
    "type": "sequence",
    "elements": [
        {"type": "regex", "pattern": "[a-z]{1,4}: "},
        {"type": "json_schema", "json_schema": {"type": "array", "items": {"enum": [1, "b"]}}},
    ],
}
CHOICES = ["yes", "no", "maybe é"]
GRAMMARS = {
    "json_object": Grammar("json_object"),
    "json_schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "regex": Grammar("regex", r"[a-c]{2,4}-\d{1,9}(\.[^\d\s]{3})?"),
    "choice": Grammar("choice", json.dumps(CHOICES)),
    "ebnf": Grammar("ebnf", 'root ::= "a" root "b" | [x-z] | "the falcon"'),
    "structural_tag": Grammar("structural_tag", json.dumps({"format": SENTENCE})),
}
FITS = {
    "json_object": lambda text: isinstance(json.loads(text), dict),
    "json_schema": lambda text: Draft202012Validator(SCHEMA).is_valid(json.loads(text)),
    "regex": lambda text: re.fullmatch(GRAMMARS["regex"].text, text),
    "choice": lambda text: text in CHOICES,
    "ebnf": lambda text: re.fullmatch("a*([x-z]|the falcon)b*", text),
    "structural_tag": lambda text: json.loads(text.partition(": ")[2]) is not None,
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_target(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def engines(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(target, tmp_path_factory.mktemp("drafter"))


@pytest.fixture(scope="module")
def tokenizer(target: Path) -> Tokenizer:
    return Tokenizer.from_file(str(target / "tokenizer.json"))


def request(grammar: Grammar | str | None, **changes: Any) -> Submit:
    """Greedy for 110 tokens, unless told otherwise; names of `SamplingParams` go there."""
    names = SamplingParams.__struct_fields__
    own = {name: changes.pop(name) for name in names if name in changes}
    fields = {"max_tokens": 110, "stop_token_ids": [END]} | changes
    return Submit(
        "a",
        PROMPT,
        sampling=SamplingParams(**({"temperature": 0.0, "seed": 5} | own)),
        grammar=GRAMMARS[grammar] if isinstance(grammar, str) else grammar,
        **fields,
    )


def text_of(tokenizer: Tokenizer, outputs: list[RequestOutput]) -> str:
    return tokenizer.decode(ids_of(outputs), skip_special_tokens=True)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", GRAMMARS)
def test_speculation_changes_no_token_and_what_is_whole_fits(
    engines: Engines, tokenizer: Tokenizer, name: str, kind: str
) -> None:
    accepted, num_whole = [], 0
    for temperature, seed in [(0.0, 0), (1.0, 1), (1.0, 2), (0.7, 3)]:
        outputs = engines.check(name, request(kind, temperature=temperature, seed=seed))
        accepted += [output.accepted for output in outputs]
        if outputs[-1].finish_reason == "stop":
            assert ids_of(outputs)[-1] == END
            assert FITS[kind](text_of(tokenizer, outputs))
            num_whole += 1
    assert num_whole > 1
    assert max(accepted) >= (0 if kind == "choice" else 2), "the walk must go down the tree"


@pytest.mark.parametrize(
    "changes",
    [
        {"logit_bias": {END: -100.0, 20: 100.0, 91: -100.0}},
        {"min_tokens": 70},
        {"frequency_penalty": 1.5, "presence_penalty": -1.0, "repetition_penalty": 1.3},
        {"top_k": 3, "top_p": 0.8, "min_p": 0.05, "temperature": 1.0},
        {"logprobs": 3, "temperature": 1.0},
        {"stop_token_ids": [END, 35, 41]},
        {"stop_token_ids": []},
    ],
    ids=str,
)
def test_speculation_changes_no_token_with_other_parameters_beside_a_grammar(
    engines: Engines, changes: dict[str, Any]
) -> None:
    for kind in ("json_schema", "regex", "ebnf"):
        outputs = engines.check("float32", request(kind, **changes))
        assert outputs[-1].finish_reason in ("stop", "length")


def test_a_finished_grammar_lets_only_stop_tokens_follow_whatever_min_tokens_says(
    engines: Engines, tokenizer: Tokenizer
) -> None:
    for changes in ({"min_tokens": 60}, {"logit_bias": {END: -100.0}}):
        outputs = engines.check("float32", request("choice", **changes))
        assert text_of(tokenizer, outputs) in CHOICES
        assert outputs[-1].finish_reason == "stop"
        assert ids_of(outputs)[-1] == END


def test_min_tokens_holds_while_the_grammar_allows_more(engines: Engines) -> None:
    endless = Grammar("regex", "[a-z]*")
    biased = {"logit_bias": {END: 100.0}}
    assert ids_of(engines.check("float32", request(endless, **biased))) == [END]
    outputs = engines.check("float32", request(endless, min_tokens=7, **biased))
    assert len(ids_of(outputs)) == 8


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_without_a_stop_token_an_answer_ends_where_its_grammar_does(
    engines: Engines, tokenizer: Tokenizer, name: str
) -> None:
    for kind in ("choice", "json_schema"):
        for seed in range(2):
            submit = request(kind, stop_token_ids=[], temperature=1.0, seed=seed)
            outputs = engines.check(name, submit)
            assert outputs[-1].finish_reason == "stop"
            assert FITS[kind](text_of(tokenizer, outputs))
    endless = engines.check(name, request(Grammar("regex", "a+"), stop_token_ids=[], max_tokens=9))
    assert text_of(tokenizer, endless) == "a" * 9
    assert endless[-1].finish_reason == "length"


@pytest.mark.parametrize("done", [1, 2, 7, 20])
def test_tokens_of_an_earlier_engine_are_read_by_the_grammar(engines: Engines, done: int) -> None:
    submit = request("json_schema", temperature=1.0, seed=2)
    answer = ids_of(engines.check("float32", submit))
    assert len(answer) > done
    again = msgspec.structs.replace(submit, output_ids=answer[:done])
    assert ids_of(engines.check("float32", again)) == answer[done:]


def test_logprobs_are_those_of_the_target_without_its_grammar(engines: Engines) -> None:
    """What is forced may be unlikely, and what is likely forbidden."""
    outputs = engines.check("float32", request("json_schema", logprobs=2))
    entries = [entry for output in outputs for entry in output.logprobs]
    assert any(entry.logprob < min(entry.top_logprobs) for entry in entries)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_neighbours_with_and_without_grammars_change_no_token(engines: Engines, name: str) -> None:
    kinds = ["json_schema", None, "regex", "json_schema", "choice", None]
    submits = [
        request(kind, temperature=1.0, seed=seed, max_tokens=50) for seed, kind in enumerate(kinds)
    ]
    expected = [ids_of(run(engines.plain[name], submit)) for submit in submits]
    found = together(engines.falcon[name], submits)
    assert [ids_of(outputs) for outputs in found] == expected


def together(engine: Engine, submits: list[Submit]) -> list[list[RequestOutput]]:
    """What each gets when all run at once."""
    for number, submit in enumerate(submits):
        engine.submit(msgspec.structs.replace(submit, request_id=str(number)))
    found: list[list[RequestOutput]] = [[] for _ in submits]
    while engine.has_work:
        for output in engine.step().outputs:
            found[int(output.request_id)].append(output)
    return found


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("json_schema", '{"type": "string", "not": {}}'), "'not'"),
        (Grammar("regex", "(?=a)"), "lookahead"),
        (Grammar("ebnf", "root ::= missing"), '"missing" is not defined'),
        (Grammar("ebnf", 'start ::= "a"'), '"root" is not found'),
        (Grammar("ebnf", "root ::= root"), "no text"),
        (Grammar("structural_tag", '{"format": {"type": "x"}}'), "'type'"),
    ],
)
def test_a_grammar_that_cannot_be_followed_refuses_its_request_alone(
    engines: Engines, grammar: Grammar, reason: str
) -> None:
    refused, other = together(engines.falcon["float32"], [request(grammar), request("choice")])
    (output,) = refused
    assert (output.finish_reason, output.token_ids) == ("error", [])
    assert reason in output.refusal
    assert "/" not in output.refusal.split("'")[0], "no place in xgrammar's code"
    assert other[-1].finish_reason == "stop"


def test_a_grammar_of_the_empty_text_alone_needs_a_stop_token(engines: Engines) -> None:
    nothing = Grammar("regex", "")
    assert ids_of(engines.check("float32", request(nothing))) == [END]
    (output,) = run(engines.falcon["float32"], request(nothing, stop_token_ids=[]))
    assert output.finish_reason == "error"
    assert "no text" in output.refusal


def test_where_no_token_goes_on_the_request_fails_alone_with_what_it_has(tmp_path: Path) -> None:
    """The vocabulary has lower-case letters only."""
    engine = load(save_chat_target(tmp_path))
    dead_end = request(Grammar("regex", "ab[A-Z]"), stop_token_ids=[1])
    dead_end = msgspec.structs.replace(dead_end, prompt_ids=[5, 6], max_tokens=40)
    fine = msgspec.structs.replace(dead_end, grammar=Grammar("regex", "xyz"))
    failed, other = together(engine, [dead_end, fine])
    assert [chr(token - 4 + 97) for token in ids_of(failed)] == ["a", "b"]
    assert failed[-1].finish_reason == "error"
    assert "no token of the served model" in failed[-1].refusal
    assert [chr(token - 4 + 97) for token in ids_of(other)[:-1]] == ["x", "y", "z"]
    (refused,) = run(engine, msgspec.structs.replace(dead_end, grammar=Grammar("json_object")))
    assert "no text" in refused.refusal


def load(target: Path, drafter: Path | None = None) -> Engine:
    return load_engine(
        EngineConfig(
            model=str(target),
            drafter=drafter and str(drafter),
            dtype="float32",
            max_num_seqs=2,
            speculation="always" if drafter else "off",
        )
    )


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_hold_only_what_their_grammar_allows(
    target: Path, tmp_path: Path, temperature: float, coupled: bool
) -> None:
    """Where it allows enough; what stands below a node that it does not is of no account."""
    engine = load(target, save_random_drafter(target, tmp_path, coupled=coupled))
    original, tree = engine.decoder.draft, engine.decoder.plan.tree
    num_checked = 0

    def draft(sequences: list[Sequence], plan: DraftPlan) -> Drafts:
        nonlocal num_checked
        drafts = original(sequences, plan)
        for row, sequence in zip(drafts.tokens.tolist(), sequences, strict=True):
            fitting = {0} if sequence.matcher is not None else set()
            for node in range(1, tree.num_nodes):
                if tree.parents[node] not in fitting:
                    continue
                assert sequence.matcher is not None
                above = [row[other] for other in tree.path_to(tree.parents[node])]
                allowed = sequence.matcher.allowed([*sequence.provisional, *above])
                if allowed is None or not allowed[row[node]]:
                    assert allowed is None or int(allowed.sum()) <= tree.ranks[node]
                    continue
                fitting.add(node)
                num_checked += 1
        return drafts

    engine.decoder.draft = draft  # type: ignore[method-assign]
    kinds = ["json_schema", "regex", None]
    submits = [request(kind, temperature=temperature, max_tokens=30) for kind in kinds]
    together(engine, submits)
    assert num_checked > 100


def test_a_model_without_a_tokenizer_follows_no_grammar(tiny_llama: Path) -> None:
    (output,) = run(
        load(tiny_llama), Submit("a", [3], 9, SamplingParams(), [], grammar=Grammar("json_object"))
    )
    assert "tokenizer.json" in output.refusal


def test_a_grammar_that_gets_too_slow_fails_its_request_alone(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher, "SECONDS", -1.0)
    monkeypatch.setattr(matcher, "SECONDS_PER_TOKEN", 0.1)
    slow = request("json_schema")
    free = request(None, max_tokens=30)
    failed, other = together(engines.falcon["float32"], [slow, free])
    assert "too long" in failed[-1].refusal
    assert failed[-1].finish_reason == "error"
    assert ids_of(other) == ids_of(run(engines.plain["float32"], free))


def test_what_does_not_compile_in_time_is_refused(
    engines: Engines, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", -1.0)
    monkeypatch.setattr(grammars._Compiler, "_loaded", lambda self: time.sleep(0.2))
    engine = load(target)
    (output,) = run(engine, request(Grammar("regex", "x")))
    assert "did not compile within" in output.refusal


def test_others_are_served_while_a_grammar_compiles(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    loaded = grammars._Compiler._loaded
    monkeypatch.setattr(grammars._Compiler, "_loaded", lambda self: gate.wait(60) and loaded(self))
    engine = load(target)
    engine.submit(msgspec.structs.replace(request("choice"), request_id="waits"))
    engine.submit(msgspec.structs.replace(request("choice"), request_id="leaves"))
    free = ids_of(run_one(engine, request(None, max_tokens=5)))
    assert len(free) == 5
    assert engine.report([]).waiting == 2
    engine.abort("leaves")
    gate.set()
    outputs = drain(engine)
    assert {output.request_id for output in outputs} == {"waits"}
    assert outputs[-1].finish_reason == "stop"


def run_one(engine: Engine, submit: Submit) -> list[RequestOutput]:
    engine.submit(submit)
    outputs: list[RequestOutput] = []
    while not (outputs and outputs[-1].finish_reason):
        outputs += engine.step().outputs
    return outputs


def drain(engine: Engine) -> list[RequestOutput]:
    outputs: list[RequestOutput] = []
    while engine.has_work:
        outputs += engine.step().outputs
    return outputs


def test_a_grammar_is_compiled_once_and_the_cache_is_bounded(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    original = grammars.compile_source
    monkeypatch.setattr(
        grammars,
        "compile_source",
        lambda compiler, source: compiled.append(source.text) or original(compiler, source),
    )
    monkeypatch.setattr(grammars, "CACHED_GRAMMARS", 2)
    engine = load(target)
    for text in ("a", "b", "a", "c", "a", "b"):
        together(engine, [request(Grammar("regex", text), max_tokens=2)] * 3)
    assert compiled == ["([a])", "([b])", "([c])", "([b])"]
    monkeypatch.setattr(grammars, "CACHED_BYTES", 0)
    together(engine, [request(Grammar("regex", "b"), max_tokens=2)])
    together(engine, [request(Grammar("regex", "d"), max_tokens=2)])
    together(engine, [request(Grammar("regex", "b"), max_tokens=2)])
    assert compiled[4:] == ["([d])", "([b])"]


def test_special_tokens_end_tokens_and_spare_ids_are_no_text(target: Path) -> None:
    vocabulary = read_vocabulary(target, VOCAB_SIZE, [END, 30])
    known = Tokenizer.from_file(str(target / "tokenizer.json")).get_vocab_size()
    assert len(vocabulary) == VOCAB_SIZE
    assert vocabulary[:5] == [b""] * 5
    assert vocabulary[30] == b""
    assert vocabulary[known:] == [b""] * (VOCAB_SIZE - known)
    whole = read_vocabulary(target, VOCAB_SIZE, [END])
    assert {bytes([byte]) for byte in range(256)} <= set(whole)
    assert b" the" in vocabulary


def test_tags_of_calls_are_text_though_they_are_special(tmp_path: Path) -> None:
    known = ["<end>", "<tool_call>", "</think>", "<other>"]
    vocabulary = read_vocabulary(build_model_folder(tmp_path, specials=known), 4, [])
    assert vocabulary == [b"", b"<tool_call>", b"</think>", b""]


def test_an_unknown_decoder_is_refused(target: Path, tmp_path: Path) -> None:
    definition = json.loads((target / "tokenizer.json").read_text())
    for decoder in (None, {"type": "WordPiece", "prefix": "##", "cleanup": True}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(definition | {"decoder": decoder}))
        with pytest.raises(GrammarError, match="decoder"):
            read_vocabulary(tmp_path, VOCAB_SIZE, [])
