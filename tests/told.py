"""What an answer says, whole or streamed, without ids, times and measurements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tests.tool_chat import joined

Json = dict[str, Any]


def told_by(answer: Json) -> Any:
    if answer["object"] == "response":
        return _response(answer)
    return [
        (
            choice["text"] if "text" in choice else _message(choice["message"]),
            choice["logprobs"],
            choice["finish_reason"],
        )
        for choice in answer["choices"]
    ]


def told_by_events(events: list[Json]) -> Any:
    if "object" not in events[0]:
        return _response(events[-1]["response"])
    is_chat = events[0]["object"] == "chat.completion.chunk"
    messages = joined([*events, None]) if is_chat else {}
    texts: dict[int, str] = defaultdict(str)
    logprobs: dict[int, Any] = {}
    reasons: dict[int, str] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        index = choice["index"]
        texts[index] += choice.get("text", "")
        logprobs[index] = _both(logprobs.get(index), choice["logprobs"])
        reasons[index] = choice["finish_reason"]
    return [
        (_message(messages[index]) if is_chat else texts[index], logprobs[index], reasons[index])
        for index in sorted(reasons)
    ]


def plain_texts(answer: Json) -> list[str]:
    """The choices' texts; nothing where there is more than text."""
    if answer["object"] == "response":
        items = answer["output"]
        is_plain = [item["type"] for item in items] == ["message"]
        return [part["text"] for part in items[0]["content"]] if is_plain else []
    if answer["object"] == "text_completion":
        return [choice["text"] for choice in answer["choices"]]
    messages = [choice["message"] for choice in answer["choices"]]
    is_plain = all(set(message) == {"role", "content", "refusal"} for message in messages)
    return [message["content"] for message in messages] if is_plain else []


def pieces_and_wholes(events: list[Json]) -> Iterator[tuple[str, str]]:
    """For each text of a streamed response what its deltas add up to, and what its end says."""
    pieces: dict[tuple[str, int], str] = defaultdict(str)
    for event in events:
        kind, _, what = event["type"].rpartition(".")
        if what == "delta":
            pieces[kind, event["output_index"]] += event["delta"]
        elif what == "done" and not {"text", "arguments"}.isdisjoint(event):
            whole = event["text"] if "text" in event else event["arguments"]
            yield pieces[kind, event["output_index"]], whole


def _message(message: Json) -> Json:
    calls = [call["function"] for call in message.get("tool_calls", [])]
    thoughts = [message.get(name, "") for name in ("reasoning", "reasoning_content")]
    return {"content": message["content"] or "", "thoughts": thoughts, "calls": calls}


def _response(response: Json) -> Json:
    drop = {"id", "created_at", "completed_at", "metrics", "timings", "usage"}
    items = [
        {name: value for name, value in item.items() if name not in ("id", "call_id")}
        for item in response["output"]
    ]
    kept = {name: value for name, value in response.items() if name not in drop}
    return kept | {"output": items, "tokens": response["usage"]["output_tokens"]}


def _both(first: Json | None, then: Json | None) -> Json | None:
    """Log-probabilities of two chunks as those of one."""
    if first is None or then is None:
        return first if then is None else then
    return {name: None if then[name] is None else first[name] + then[name] for name in then}
