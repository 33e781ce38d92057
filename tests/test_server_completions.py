"""Text completions on a real socket: prompts of all forms, echo, legacy log-probabilities."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer

from server.settings import Limits
from tests.server_harness import (
    CONTEXT,
    SPECIALS,
    Running,
    build_model_folder,
    eventually,
    running_server,
)

PATH = "/v1/completions"
CANARY = "canary7f3a"
END = 1  # the model's end-of-sequence id
SAY = json.dumps({"say": "hello world, é漢 and the hills", "step": 3})
MIXED = "a é漢 <|user|>hello world"
BOS_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|bos|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}},
}


def with_bos(folder: Path) -> Path:
    """The same model, but its tokenizer puts a BOS in front of a text."""
    build_model_folder(folder)
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["post_processor"] = BOS_TEMPLATE
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def telling() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server_harness.WORKER", Path(__file__).with_name("telling_worker.py"))
        yield


@pytest.fixture(scope="module")
def server(folder: Path, telling: None) -> Iterator[Running]:
    with running_server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def bos_server(tmp_path_factory: pytest.TempPathFactory, telling: None) -> Iterator[Running]:
    with running_server(with_bos(tmp_path_factory.mktemp("bos"))) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def request(prompt: object = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": 100} | fields


def complete(server: Running, prompt: object = "hi", **fields: Any) -> dict[str, Any]:
    answer = server.post(request(prompt, **fields), PATH)
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def texts(server: Running, prompt: object, **fields: Any) -> list[str]:
    return [choice["text"] for choice in complete(server, prompt, **fields)["choices"]]


def told(server: Running, name: str, **fields: Any) -> Any:
    """The value of a field of the `Submit` that these parameters became."""
    (text,) = texts(server, json.dumps({"tell": name}), **fields)
    return json.loads(text)


def streamed(server: Running, **fields: Any) -> list[dict[str, Any]]:
    """What the chunks of a stream join to: choices as a whole reply has them."""
    *chunks, done = server.events(request(**fields), path=PATH)
    assert done == "[DONE]"
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
        blank = {"index": choice["index"], "text": "", "logprobs": None, "finish_reason": None}
        own = found.setdefault(choice["index"], blank)
        assert own["finish_reason"] is None, "nothing follows a choice's last chunk"
        own["text"] += choice["text"]
        own["finish_reason"] = choice["finish_reason"]
        if choice["logprobs"] is not None:
            kept = own["logprobs"] or {key: [] for key in choice["logprobs"]}
            own["logprobs"] = {key: kept[key] + new for key, new in choice["logprobs"].items()}
    return [found[index] for index in sorted(found)]


def counted(server: Running, name: str) -> float:
    families = text_string_to_metric_families(server.get("/metrics").text)
    return next(s.value for f in families for s in f.samples if s.name == f"vllm:{name}_total")


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert CANARY not in answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_completion_has_exactly_the_keys_of_openais_schema(server: Running) -> None:
    reply = complete(server, "hi")
    assert set(reply) == {"id", "object", "created", "model", "choices", "usage"}
    assert reply["id"].startswith("cmpl-")
    assert reply["object"] == "text_completion"
    expected = {"index": 0, "text": "echo:hi", "logprobs": None, "finish_reason": "stop"}
    assert reply["choices"] == [expected]


def test_chunks_come_in_order_with_usage_in_one_place(server: Running) -> None:
    options = {"include_usage": True}
    *chunks, usage, done = server.events(request(SAY, stream_options=options), path=PATH)
    assert done == "[DONE]"
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert all(chunk["usage"] is None for chunk in chunks)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len(chunks) > 5
    assert usage["choices"] == []
    assert usage["usage"] == complete(server, SAY)["usage"]
    assert len({(e["id"], e["created"], e["model"]) for e in [*chunks, usage]}) == 1
    plain = server.events(request(SAY), path=PATH)
    assert not any("usage" in chunk for chunk in plain[:-1])


def test_every_form_of_prompt_is_answered(server: Running, tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode(text).ids for text in ("one", "two")]
    assert texts(server, "one") == texts(server, ids[0]) == texts(server, ["one"])
    assert texts(server, ["one", "two"]) == ["echo:one", "echo:two"]
    assert texts(server, ids) == ["echo:one", "echo:two"]
    assert texts(server, [ids[1]]) == ["echo:two"]


def test_choices_are_numbered_by_prompt_and_then_by_choice(server: Running) -> None:
    reply = complete(server, ["one", "two"], n=3, best_of=3)
    assert [choice["index"] for choice in reply["choices"]] == [*range(6)]
    assert [c["text"] for c in reply["choices"]] == ["echo:one"] * 3 + ["echo:two"] * 3
    assert streamed(server, prompt=["one", "two"], n=3) == reply["choices"]


def test_a_prompt_gets_the_seeds_that_it_gets_alone(server: Running) -> None:
    prompt = json.dumps({"tell": "seed"})
    alone = texts(server, prompt, seed=5, n=2)
    assert texts(server, [prompt, prompt], seed=5, n=2) == 2 * alone
    assert len(set(texts(server, [prompt] * 4, n=2))) == 8


def test_sixteen_tokens_are_the_default_and_what_fits_if_fewer_do(server: Running) -> None:
    order = json.dumps({"say": "hello world", "forever": 1, "step": 50})
    body = {"model": "tiny", "prompt": order}
    reply = server.post(body, PATH).json()
    assert reply["usage"]["completion_tokens"] == 16
    assert reply["choices"][0]["finish_reason"] == "length"
    ids = [5] * (CONTEXT - 3)
    assert server.post(body | {"prompt": ids}, PATH).json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({}, "max_tokens", 100),
        ({"temperature": 0.5}, "temperature", 0.5),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"top_k": 7}, "top_k", 7),
        ({"min_p": 0.25}, "min_p", 0.25),
        ({"frequency_penalty": 1}, "frequency_penalty", 1.0),
        ({"logit_bias": {"9": 1}}, "logit_bias", {"9": 1.0}),
        ({"stop_token_ids": [9]}, "stop_token_ids", [END, 9]),
        ({"speculative": {"enabled": False}}, "speculative", False),
        ({}, "logprobs", None),
        ({"logprobs": 0}, "logprobs", 0),
        ({"logprobs": 5}, "prompt_logprobs", None),
        ({"echo": True}, "prompt_logprobs", None),
    ],
)
def test_parameters_reach_the_engine(
    server: Running, fields: dict[str, Any], name: str, value: object
) -> None:
    text = texts(server, json.dumps({"tell": name}), **fields)[0]
    assert json.loads(text.removeprefix(json.dumps({"tell": name}))) == value


@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("max_tokens", [0, 1, 9, 100])
@pytest.mark.parametrize("prompt", [SAY, MIXED, [SAY, "two"]])
def test_a_stream_joins_to_the_whole_reply(
    server: Running, prompt: object, max_tokens: int, logprobs: int | None
) -> None:
    fields = {"max_tokens": max_tokens, "logprobs": logprobs, "echo": True, "n": 2}
    choices = complete(server, prompt, **fields)["choices"]
    assert streamed(server, prompt=prompt, **fields) == choices
    if max_tokens:
        del fields["echo"]
        assert (
            streamed(server, prompt=prompt, **fields)
            == complete(server, prompt, **fields)["choices"]
        )


def check_tokens(text: str, logprobs: dict[str, list[Any]]) -> None:
    """Every token's text is where its offset says; those of a split character share theirs."""
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(column) for column in logprobs.values()}) == 1
    offsets = logprobs["text_offset"]
    assert offsets == sorted(offsets)
    bounds = zip(logprobs["tokens"], offsets, [*offsets[1:], len(text)], strict=True)
    for token, start, end in bounds:
        own = text[start:end]
        assert own == token or (own == "" and token in SPECIALS) or token.startswith("bytes:\\x")
    joined = b"".join(
        bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
        if token.startswith("bytes:")
        else token.encode()
        for token, start, end in zip(
            logprobs["tokens"], offsets, [*offsets[1:], len(text)], strict=True
        )
        if start != end or token not in SPECIALS
    )
    assert joined == text.encode()


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("step", [1, 3, 50])
def test_echo_gives_prompt_and_answer_with_offsets_into_both(
    server: Running, tokenizer: Tokenizer, as_ids: bool, step: int
) -> None:
    said = "hello world, é漢"
    text = "é漢 <|system|> hello" + "<|user|>" + json.dumps({"say": said, "step": step})
    ids = tokenizer.encode(text).ids
    prompt = ids if as_ids else text
    choice = complete(server, prompt, echo=True, logprobs=2)["choices"][0]
    assert choice["text"] == text + said
    logprobs = choice["logprobs"]
    check_tokens(choice["text"], logprobs)
    answer = [*tokenizer.encode(said).ids, END]
    assert logprobs["token_logprobs"] == [None, *(-i / 64 for i in [*ids[1:], *answer])]
    assert logprobs["top_logprobs"][0] is None
    for token, own, top in zip(*list(logprobs.values())[:3], strict=True):
        if top is not None:
            assert top[token] == own == max(top.values())
            assert 2 <= len(top) <= 3


def test_offsets_without_echo_are_into_the_answer(server: Running) -> None:
    choice = complete(server, SAY, logprobs=1)["choices"][0]
    check_tokens(choice["text"], choice["logprobs"])
    assert choice["logprobs"]["text_offset"][0] == 0


def test_a_character_of_several_tokens_is_named_by_its_bytes(server: Running) -> None:
    logprobs = complete(server, "漢", echo=True, max_tokens=0, logprobs=0)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xe6", "bytes:\\xbc", "bytes:\\xa2"]
    assert logprobs["text_offset"] == [0, 0, 0]
    assert [None if top is None else len(top) for top in logprobs["top_logprobs"]] == [None, 1, 1]


@pytest.mark.parametrize("logprobs", [None, 1])
def test_no_token_is_made_where_none_is_wanted(server: Running, logprobs: int | None) -> None:
    """As benchmarks score a text: its tokens, echo, and max_tokens 0."""
    before = [counted(server, name) for name in ("prompt_tokens", "generation_tokens")]
    prompt = [[5, 9, 280], [7], [12] * 40]
    reply = complete(server, prompt, max_tokens=0, echo=True, logprobs=logprobs, temperature=0)
    for choice, ids in zip(reply["choices"], prompt, strict=True):
        assert choice["finish_reason"] == "length"
        if logprobs is not None:
            scores = choice["logprobs"]["token_logprobs"]
            assert scores == [None, *(-i / 64 for i in ids[1:])]
    usage = reply["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (44, 0)
    after = [counted(server, name) for name in ("prompt_tokens", "generation_tokens")]
    assert after == [before[0] + 44, before[1]]


def test_usage_counts_each_prompt_once_and_metrics_agree(server: Running) -> None:
    before = [counted(server, name) for name in ("prompt_tokens", "generation_tokens")]
    alone = [complete(server, prompt)["usage"] for prompt in ("one", "two three")]
    body = {"n": 3, "echo": True, "logprobs": 1}
    usage = complete(server, ["one", "two three"], **body)["usage"]
    assert usage["prompt_tokens"] == sum(own["prompt_tokens"] for own in alone)
    assert usage["completion_tokens"] == 3 * sum(own["completion_tokens"] for own in alone)
    cached = sum(own["prompt_tokens_details"]["cached_tokens"] for own in alone)
    assert usage["prompt_tokens_details"] == {"cached_tokens": cached}
    options = {"stream_options": {"include_usage": True}}
    *_, last, _ = server.events(request(["one", "two three"], **body, **options), path=PATH)
    assert last["usage"] == usage
    total = [*alone, usage, usage]
    for name, old in zip(("prompt", "generation"), before, strict=True):
        kind = "completion" if name == "generation" else name
        sums = sum(own[f"{kind}_tokens"] for own in total)
        assert counted(server, f"{name}_tokens") == old + sums


def test_names_of_special_tokens_stand_for_them(server: Running, tokenizer: Tokenizer) -> None:
    """As in vLLM and llama.cpp: whoever sends a raw prompt writes its template."""
    prompt = "<|user|>" + json.dumps({"tell": "prompt_ids"}) + "<|end|><|assistant|>"
    ids = json.loads(texts(server, prompt)[0])
    assert ids == tokenizer.encode(prompt).ids
    assert [i for i in ids if i < len(SPECIALS)] == [3, 1, 4]


def test_a_tokenizer_that_adds_a_bos_adds_it_to_texts_alone(bos_server: Running) -> None:
    prompt = "<|user|>" + json.dumps({"tell": "prompt_ids"})
    ids = json.loads(texts(bos_server, prompt)[0])
    assert ids[:2] == [0, 3]
    assert json.loads(texts(bos_server, prompt, add_special_tokens=True)[0]) == ids
    assert json.loads(texts(bos_server, prompt, add_special_tokens=False)[0]) == ids[1:]
    assert json.loads(texts(bos_server, ids[1:])[0]) == ids[1:]


def test_an_added_bos_is_scored_as_a_token_and_is_no_text(bos_server: Running) -> None:
    fields = {"echo": True, "max_tokens": 0, "logprobs": 0}
    choice = complete(bos_server, "hé<|bos|>", **fields)["choices"][0]
    assert choice["text"] == "hé<|bos|>"
    assert choice["logprobs"]["tokens"][0] == choice["logprobs"]["tokens"][-1] == "<|bos|>"
    assert choice["logprobs"]["text_offset"][:2] == [0, 0]
    assert choice["logprobs"]["text_offset"][-1] == 2
    assert choice["logprobs"]["token_logprobs"][0] is None
    alone = complete(bos_server, "", **fields)
    assert alone["choices"][0]["text"] == ""
    assert alone["usage"]["prompt_tokens"] == 1
    named = complete(bos_server, [0, 0], **fields)["choices"][0]
    assert named["text"] == "<|bos|><|bos|>"


def test_an_answer_keeps_the_space_that_decoders_drop_from_a_text(
    tmp_path: Path, telling: None
) -> None:
    folder = build_model_folder(tmp_path / "m")
    definition = json.loads((folder / "tokenizer.json").read_text())
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoder = {"type": "Sequence", "decoders": [definition["decoder"], strip]}
    (folder / "tokenizer.json").write_text(json.dumps(definition | {"decoder": decoder}))
    order = json.dumps({"say": " world", "step": 1})
    with running_server(folder) as server:
        choice = complete(server, order, echo=True, logprobs=0)["choices"][0]
        assert choice["text"] == order + " world"
        check_tokens(choice["text"], choice["logprobs"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": True}, "prompt"),
        ({"prompt": {"text": CANARY}}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[5], []]}, "prompt"),
        ({"prompt": [CANARY, 5]}, "prompt"),
        ({"prompt": [5, CANARY]}, "prompt"),
        ({"prompt": [CANARY, [5]]}, "prompt"),
        ({"prompt": [[5], CANARY]}, "prompt"),
        ({"prompt": [[5, CANARY]]}, "prompt"),
        ({"prompt": [[[5]]]}, "prompt"),
        ({"prompt": [5, True]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [5.0]}, "prompt"),
        ({"prompt": [5, None]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [320]}, "prompt"),
        ({"prompt": [[5], [2**63]]}, "prompt"),
        ({"prompt": [5, 2**70]}, "prompt.1"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 33, "n": 2}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"suffix": CANARY}, "suffix"),
        ({"suffix": 5}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"n": 0}, "n"),
        ({"add_special_tokens": 1}, "add_special_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"320": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": [{"role": "user", "content": CANARY}]}, "messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_bad_parameters_are_400_and_named(
    server: Running, fields: dict[str, Any], param: str
) -> None:
    error = error_of(server.post(request(CANARY) | fields, PATH), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_an_empty_prompt_is_told_why(server: Running) -> None:
    assert "empty" in error_of(server.post(request(""), PATH), 400)["message"]


def test_neutral_values_pass_and_unknown_ones_are_reported(server: Running) -> None:
    body = request("hi", suffix="", best_of=1, echo=False, user="u", frobnicate=1, logprobs=None)
    answer = server.post(body, PATH)
    assert answer.status_code == 200
    assert answer.headers["x-falcon-ignored-params"] == "frobnicate"


def test_a_strict_server_refuses_unknown_parameters(folder: Path) -> None:
    with running_server(folder, limits=Limits(strict_params=True)) as server:
        assert server.post(request("hi", user="u"), PATH).status_code == 200
        assert error_of(server.post(request("hi", frob=1), PATH), 400)["param"] == "frob"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [5] * CONTEXT},
        {"prompt": [5] * (CONTEXT + 1), "max_tokens": 0, "echo": True},
        {"prompt": ["hi", "漢" * CONTEXT]},
        {"prompt": "x" * (8 * CONTEXT + 1)},
        {"prompt": [5] * 200, "max_tokens": 57},
    ],
)
def test_too_long_is_openais_context_length_exceeded(
    server: Running, fields: dict[str, Any]
) -> None:
    error = error_of(server.post(request() | fields, PATH), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert error["message"].startswith(f"This model's maximum context length is {CONTEXT} tokens.")


def test_the_whole_context_can_be_scored(server: Running) -> None:
    ids = [5] * CONTEXT
    choice = complete(server, ids, max_tokens=0, echo=True, logprobs=20)["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == CONTEXT


def test_scores_that_would_fill_the_memory_are_refused(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.completions.SCORED_TOKENS", 0)
    fields = {"max_tokens": 0, "echo": True, "logprobs": 20}
    complete(server, [[5] * CONTEXT], **fields)
    for more in ({"prompt": [[5] * CONTEXT, [5]]}, {"prompt": [5] * CONTEXT, "n": 2}):
        error = error_of(server.post(request() | fields | more, PATH), 400)
        assert (error["param"], f"{21 * CONTEXT}" in error["message"]) == ("logprobs", True)
    complete(server, [[5] * CONTEXT] * 10, **fields | {"logprobs": 1})


def test_unknown_models_and_methods_have_their_status(server: Running) -> None:
    error = error_of(server.post(request() | {"model": CANARY}, PATH), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    error_of(server.get(PATH), 405)
    assert "/v1/completions" in error_of(server.get("/other"), 404)["message"]


def test_more_completions_than_the_server_takes_are_a_400_and_not_a_429(folder: Path) -> None:
    with running_server(folder, limits=Limits(max_num_queued_reqs=1)) as server:
        error = error_of(server.post(request(["a"] * 6), PATH), 400)
        assert (error["param"], "at most 5" in error["message"]) == ("n", True)
        assert texts(server, ["a"] * 5) == ["echo:a"] * 5


def test_a_model_that_does_not_score_prompts_says_so(folder: Path) -> None:
    with running_server(folder, "--no-scores") as server:
        error = error_of(server.post(request("hi", echo=True, logprobs=1), PATH), 400)
        assert (error["param"], error["code"]) == ("logprobs", "unsupported_parameter")
        assert texts(server, "hi", echo=True) == ["hiecho:hi"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_every_completion(server: Running, stream: bool) -> None:
    aborts = server.received("Abort")
    order = json.dumps({"say": "hello", "forever": True, "delay": 0.01})
    body = request([order] * 3, stream=stream, echo=True, logprobs=1, ignore_eos=True)
    server.leave(body, PATH, choices=3)
    eventually(lambda: server.received("Abort") == aborts + 3)


def test_an_engine_that_fails_a_prompt_ends_the_request(server: Running) -> None:
    orders = [json.dumps({"say": "hello", "step": 1, **more}) for more in ({}, {"error_after": 3})]
    answer = server.post(request(orders, echo=True, logprobs=1), PATH)
    assert error_of(answer, 500)["code"] == "generation_failed"
    *_, error, done = server.events(request(orders, echo=True, logprobs=1), path=PATH)
    assert (error["error"]["code"], done) == ("generation_failed", "[DONE]")


def test_scores_come_once_though_the_engine_is_replaced(server: Running) -> None:
    order = json.dumps({"say": "abcdijkmnpqrtuvwxyz" * 2, "step": 1, "delay": 0.01})
    body = request(order, echo=True, logprobs=1)
    expected = server.post(body, PATH).json()["choices"]
    chunks: list[dict[str, Any]] = []
    with server.client.stream("POST", PATH, json=body | {"stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunks += json.loads(line.removeprefix("data: "))["choices"]
                if len(chunks) in (3, 30):  # among the scores, and among the tokens
                    os.kill(server.worker_pid(), signal.SIGKILL)
    assert len(chunks) > 50
    assert "".join(chunk["text"] for chunk in chunks) == expected[0]["text"]
    for key, column in expected[0]["logprobs"].items():
        assert [item for chunk in chunks for item in chunk["logprobs"][key]] == column


def test_openais_client_completes(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    reply = client.completions.create(
        model="tiny", prompt=["one", "two"], max_tokens=50, echo=True, logprobs=2, n=2
    )
    assert [choice.text for choice in reply.choices] == 2 * ["oneecho:one"] + 2 * ["twoecho:two"]
    for choice in reply.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        assert choice.logprobs.tokens[-1] == "<|end|>"
    assert reply.usage is not None
    ids = tokenizer.encode("one").ids
    assert client.completions.create(model="tiny", prompt=[ids]).choices[0].text == "echo:one"


def test_openais_client_streams(client: openai.OpenAI) -> None:
    found = {0: "", 1: ""}
    with client.completions.create(
        model="tiny", prompt=["one", "two"], stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                found[choice.index] += choice.text
    assert found == {0: "echo:one", 1: "echo:two"}
    assert chunk.usage is not None
    with pytest.raises(openai.BadRequestError, match="'prompt'"):
        client.completions.create(model="tiny", prompt=[])
