"""Bodies, events and errors are OpenAI's, to the last key; streams say what whole answers do.

Each is held against the server's own description, OpenAI's SDK read strictly, and OpenAI's
published schema where it is installed (`make clients`). The engine is real, the model random.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from fakes import save_random_drafter, save_random_target
from tokenizers import Tokenizer
from transformers import LlamaConfig

from engine.client import WORKER_COMMAND, EngineClient
from engine.config import EngineConfig
from engine.messages import RequestOutput, Submit
from server.settings import Address, Settings
from tests.conformance_cases import REFUSED, RESPONSES, STREAMED, WHOLE, Json
from tests.openai_schema import check_openai
from tests.published_schema import check_answer, events_of
from tests.server_harness import SPECIALS, Running, serving
from tests.told import pieces_and_wholes, plain_texts, told_by, told_by_events
from tests.tool_chat import TAGS, build_tool_folder

OBJECTS = {
    "chat.completion": "CreateChatCompletionResponse",
    "chat.completion.chunk": "CreateChatCompletionStreamResponse",
    "list": "ListModelsResponse",
    "model": "Model",
    "response": "Response",
    "text_completion": "CreateCompletionResponse",
}
Ids = dict[str, list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama, which would say anything, with a random drafter."""
    folder = build_tool_folder(tmp_path_factory.mktemp("model"))
    config = LlamaConfig(
        vocab_size=352,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )
    save_random_target(config, folder)
    save_random_drafter(folder, folder / "drafter")
    return folder


@pytest.fixture(scope="module")
def ids() -> Iterator[Ids]:
    """The token ids that the engine gives for each choice, in the choices' order."""
    found: Ids = {}
    generate = EngineClient.generate

    async def recorded(self: EngineClient, submit: Submit) -> AsyncGenerator[RequestOutput, None]:
        own = found.setdefault(submit.request_id, [])
        async with aclosing(generate(self, submit)) as outputs:
            async for output in outputs:
                own += output.token_ids
                yield output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineClient, "generate", recorded)
        yield found


@pytest.fixture(scope="module")
def server(folder: Path, ids: Ids) -> Iterator[Running]:
    engine = EngineConfig(
        model=str(folder),
        drafter=str(folder / "drafter"),
        dtype="float32",
        threads=1,
        speculation="always",
    )
    settings = Settings(engine, ("tiny",), Address("127.0.0.1", 0))
    with serving(settings, WORKER_COMMAND, folder / "log", start_seconds=60) as running:
        running.client.timeout = 60
        yield running


def whole(server: Running, path: str, body: Json) -> Json:
    """An answer of status 200, checked."""
    answer = server.post({name: body[name] for name in body if name != "stream_options"}, path)
    assert answer.status_code == 200, answer.text
    check_answer("post", path, answer)
    found: Json = answer.json()
    check_openai(OBJECTS[found["object"]], found)
    return found


def streamed(server: Running, path: str, body: Json) -> list[Json]:
    """The events of a stream, each checked."""
    answer = server.post(body | {"stream": True}, path)
    assert answer.status_code == 200, answer.text
    check_answer("post", path, answer)
    events = events_of(answer.text)
    if path != RESPONSES:
        assert events.pop() == {"data": "[DONE]"}
    found = [json.loads(event["data"]) for event in events]
    for event in found:
        check_openai(OBJECTS.get(event.get("object", ""), "ResponseStreamEvent"), event)
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_the_stream_the_whole_answer_and_the_ids_are_one_text(
    server: Running, folder: Path, ids: Ids, name: str
) -> None:
    path, body = WHOLE[name]
    ids.clear()
    answer = whole(server, path, body)
    own = list(ids.values())
    check_ids(answer, own, body, Tokenizer.from_file(str(folder / "tokenizer.json")))
    ids.clear()
    events = streamed(server, path, body)
    assert told_by_events(events) == told_by(answer)
    if "stop" not in body:  # then the engine may be some tokens ahead
        assert list(ids.values()) == own
    if path == RESPONSES:
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert all(piece == text for piece, text in pieces_and_wholes(events))
    else:
        check_usage(answer, events, body)


def check_ids(answer: Json, ids: list[list[int]], body: Json, tokenizer: Tokenizer) -> None:
    """Text is what the ids spell. Special tokens are no text, but for a chat's tags that mean
    something there.
    """
    if not {"chat_template_kwargs", "tool_choice"}.isdisjoint(body):
        return  # thoughts and calls are not all of what was written
    is_raw = answer["object"] == "text_completion"
    hidden = SPECIALS + (TAGS if is_raw else [] if body.get("tools") else TAGS[2:])
    dropped = set(map(tokenizer.token_to_id, hidden))
    for text, own in zip(plain_texts(answer), ids, strict=False):
        shown = [token for token in own if token not in dropped]
        written = tokenizer.decode(shown, skip_special_tokens=False)
        if not {"stop", "stop_token_ids"}.isdisjoint(body):
            assert written.startswith(text)
        elif body.get("echo"):
            assert text.endswith(written)
        else:
            assert text == written


def check_usage(answer: Json, events: list[Json], body: Json) -> None:
    """Usage is where it was asked for and nowhere else, and the whole answer's."""
    options = body.get("stream_options", {})
    told = [event["usage"] for event in events if "usage" in event]
    if not options:
        assert told == []
        return
    *earlier, last = told
    assert len(told) == len(events)
    assert events[-1]["choices"] == []
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last[count] == answer["usage"][count]
    assert any(earlier) == ("continuous_usage_stats" in options)


@pytest.mark.parametrize("name", STREAMED)
def test_streams_that_tell_of_steps_are_openais_but_for_that(server: Running, name: str) -> None:
    assert any("falcon" in event for event in streamed(server, *STREAMED[name]))


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_openais_error(server: Running, name: str, is_stream: bool) -> None:
    path, body, status, code = REFUSED[name]
    answer = server.post({"stream": is_stream} | body, path)
    assert answer.status_code == status
    check_answer("post", path, answer)
    check_openai("ErrorResponse", answer.json())
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/models/huge"])
def test_models_are_openais(server: Running, path: str) -> None:
    answer = server.get(path)
    check_answer("get", path, answer)
    check_openai(OBJECTS.get(answer.json().get("object"), "ErrorResponse"), answer.json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "the falcon", "return_token_strs": True}),
        ("/tokenize", {"messages": [{"role": "user", "content": "x"}], "model": "tiny"}),
        ("/detokenize", {"tokens": [40, 41, 42]}),
        ("/ping", {}),
    ],
)
def test_other_replies_are_as_described(server: Running, path: str, body: Json) -> None:
    answer = server.post(body, path)
    assert answer.status_code == 200
    check_answer("post", path, answer)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/ping", "/version", "/metrics"])
def test_what_operators_read_is_as_described(server: Running, path: str) -> None:
    answer = server.get(path)
    assert answer.status_code == 200
    check_answer("get", path, answer)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/tokenize"])
def test_other_methods_are_405_and_told_the_right_one(
    server: Running, method: str, path: str
) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        check_openai("ErrorResponse", answer.json())
