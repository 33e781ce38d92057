"""Requests that between them use all that the API takes, for a model that knows tools and thoughts.

`WHOLE` are answered streamed and not, with the same text; `STREAMED` only as streams. `REFUSED` are
(path, body, status, code) of what is wrong with one.
"""

from __future__ import annotations

from typing import Any

from tests.tool_chat import TOOLS

Json = dict[str, Any]

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
SHAPE = {
    "type": "object",
    "properties": {"a": {"enum": [1, "b"]}, "c": {"type": "boolean"}},
    "required": ["a", "c"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SHAPE, "strict": True}}
NAMED = {"type": "function", "function": {"name": "now"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
STRICT = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
FLAT_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]
USAGE = {"stream_options": {"include_usage": True}}
ALWAYS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
TOO_LONG = "context_length_exceeded"
THINKS = {"chat_template_kwargs": {"thinks": True}}
ASK = {"role": "user", "content": "the falcon flies over"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def chat(*messages: Json, **fields: Any) -> tuple[str, Json]:
    body = {"model": "tiny", "messages": [*messages] or [ASK], "seed": 7, "max_tokens": 12}
    return CHAT, body | fields


def completion(prompt: Any = "the falcon flies", **fields: Any) -> tuple[str, Json]:
    return COMPLETIONS, {"model": "tiny", "prompt": prompt, "seed": 7, "max_tokens": 12} | fields


def response(asked: Any = "the falcon flies", **fields: Any) -> tuple[str, Json]:
    body = {"model": "tiny", "input": asked, "seed": 7, "max_output_tokens": 16}
    return RESPONSES, body | fields


WHOLE: dict[str, tuple[str, Json]] = {
    "chat": chat(),
    "chat: greedy": chat(temperature=0),
    "chat: n": chat(n=3),
    "chat: logprobs": chat(logprobs=True),
    "chat: top_logprobs": chat(logprobs=True, top_logprobs=20),
    "chat: logprobs of choices": chat(logprobs=True, top_logprobs=2, n=2),
    "chat: shaped sampling": chat(top_p=0.9, top_k=20, min_p=0.02, temperature=1.4),
    "chat: penalties": chat(frequency_penalty=1, presence_penalty=-1, repetition_penalty=1.2),
    "chat: logit_bias": chat(logit_bias={"40": 5, "41": -100}),
    "chat: stop": chat(stop=["e", "a", "\n"], max_tokens=64),
    "chat: stop with logprobs": chat(stop="e", logprobs=True, max_tokens=64),
    "chat: stop_token_ids": chat(stop_token_ids=list(range(30, 90)), max_tokens=64),
    "chat: min_tokens": chat(min_tokens=8, ignore_eos=True),
    "chat: one token": chat(max_completion_tokens=1),
    "chat: json_object": chat(response_format={"type": "json_object"}, max_tokens=48),
    "chat: json_schema": chat(response_format=FORM, max_tokens=48),
    "chat: json_schema, logprobs": chat(response_format=FORM, max_tokens=48, logprobs=True),
    "chat: choice": chat(structured_outputs={"choice": ["yes", "no"]}),
    "chat: regex": chat(guided_regex="[a-c]{3}"),
    "chat: grammar": chat(grammar='root ::= "x" [0-9]+'),
    "chat: tools": chat(tools=TOOLS),
    "chat: tools with logprobs": chat(tools=TOOLS, logprobs=True, top_logprobs=1),
    "chat: required": chat(tools=TOOLS, tool_choice="required", max_tokens=96),
    "chat: required, one": chat(
        tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=96, n=2
    ),
    "chat: named": chat(tools=TOOLS, tool_choice=NAMED, max_tokens=64),
    "chat: allowed": chat(tools=TOOLS, tool_choice=ALLOWED, max_tokens=64, logprobs=True),
    "chat: no tool": chat(tools=TOOLS, tool_choice="none"),
    "chat: strict tools or a form": chat(tools=STRICT, response_format=FORM, max_tokens=64),
    "chat: tool results": chat(
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        tools=TOOLS,
    ),
    "chat: thoughts": chat(**THINKS),
    "chat: thoughts with logprobs": chat(**THINKS, logprobs=True),
    "chat: thoughts hidden": chat(**THINKS, include_reasoning=False),
    "chat: thoughts, then a form": chat(**THINKS, response_format=FORM, max_tokens=96),
    "chat: prediction": chat(prediction={"type": "content", "content": "the falcon flies"}),
    "chat: usage": chat(**USAGE),
    "chat: continuous usage": chat(**ALWAYS, n=2),
    "chat: stream_interval 1": chat(stream_interval=1),
    "chat: stream_interval 5": chat(stream_interval=5, n=2),
    "chat: no speculation": chat(speculative={"enabled": False}),
    "chat: stats": chat(speculative={"stats": True}, **USAGE),
    "chat: timings": chat(timings_per_token=True),
    "chat: labels": chat(user="u", store=False, metadata={"a": "b"}, service_tier="auto"),
    "chat: unknown field": chat(no_such_field=1),
    "chat: parts, names, roles": chat(
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "ada", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": "hi", "reasoning": "hm"},
        ASK,
    ),
    "chat: continued": chat(
        ASK, {"role": "assistant", "content": "over the"}, continue_final_message=True
    ),
    "chat: no generation prompt": chat(add_generation_prompt=False),
    "completion": completion(),
    "completion: texts": completion(["the falcon", "over the hills"], n=2),
    "completion: ids": completion([40, 41, 42]),
    "completion: lists of ids": completion([[40, 41], [42]]),
    "completion: echo": completion(echo=True),
    "completion: echo, logprobs": completion(echo=True, logprobs=2),
    "completion: scores": completion([40, 41, 42], echo=True, logprobs=1, max_tokens=0),
    "completion: logprobs 0": completion(logprobs=0),
    "completion: logprobs 5": completion(logprobs=5, n=2, best_of=2),
    "completion: stop": completion(stop=["e", "a"], max_tokens=64),
    "completion: usage": completion(**USAGE),
    "completion: continuous usage": completion(**ALWAYS, stream_interval=1),
    "completion: stats": completion(speculative={"stats": True}),
    "completion: timings": completion(timings_per_token=True),
    "completion: regex": completion(regex="[a-c]{3}", suffix=""),
    "completion: raw": completion(add_special_tokens=False, temperature=0),
    "completion: default length": completion(max_tokens=None),
    "response": response(),
    "response: items": response([{"role": "user", "content": "hello"}], temperature=0, top_p=0.9),
    "response: settings": response(
        instructions="be brief",
        metadata={"a": "b"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        max_tool_calls=1,
        store=True,
        truncation="disabled",
    ),
    "response: cut": response(max_output_tokens=2),
    "response: stopped": response(stop=["e", "a"], max_output_tokens=64),
    "response: logprobs": response(include=["message.output_text.logprobs"], top_logprobs=2),
    "response: form": response(
        text={"format": {"type": "json_schema", "name": "shape", "schema": SHAPE}},
        max_output_tokens=48,
    ),
    "response: required": response(tools=FLAT_TOOLS, tool_choice="required", max_output_tokens=96),
    "response: named": response(
        tools=FLAT_TOOLS, tool_choice={"type": "function", "name": "now"}, parallel_tool_calls=False
    ),
    "response: thoughts": response(**THINKS, reasoning={"summary": "auto"}),
    "response: stats": response(speculative={"stats": True}),
    "response: history": response(
        [
            {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "noon"},
        ],
        tools=FLAT_TOOLS,
    ),
}
STREAMED = {
    "chat: trace": chat(speculative={"trace": True}),
    "chat: trace, calls": chat(
        speculative={"trace": True}, tools=TOOLS, tool_choice="required", timings_per_token=True
    ),
    "completion: trace": completion(speculative={"trace": True, "stats": True}, n=2),
}
REFUSED: dict[str, tuple[str, Json, int, str | None]] = {
    "no model": (CHAT, {"messages": [ASK]}, 400, None),
    "no messages": (CHAT, {"model": "tiny"}, 400, None),
    "wrong type": (*chat(temperature="hot"), 400, None),
    "out of range": (*chat(temperature=2.5), 400, None),
    "unknown role": (*chat({"role": "cat", "content": "x"}), 400, None),
    "stray result": (*chat({"role": "tool", "tool_call_id": "x", "content": "x"}), 400, None),
    "image": (*chat({"role": "user", "content": [{"type": "image_url"}]}), 400, None),
    "not done here": (*chat(web_search_options={}), 400, "unsupported_parameter"),
    "top_logprobs alone": (*chat(top_logprobs=1), 400, None),
    "stream_options alone": (*chat(stream=False, **USAGE), 400, None),
    "unknown function": (*chat(tools=TOOLS[:1], tool_choice=NAMED), 400, None),
    "schema not kept to": (*chat(guided_json={"not": {}}), 400, None),
    "two forms": (*chat(response_format=FORM, regex="a"), 400, None),
    "unknown token": (*chat(logit_bias={"99999": 1}), 400, None),
    "five stops": (*chat(stop=["a", "b", "c", "d", "e"]), 400, None),
    "too many choices": (*chat(n=9), 400, None),
    "too long": (*chat({"role": "user", "content": "x" * 1500}), 400, TOO_LONG),
    "far too long": (*chat({"role": "user", "content": "x" * 9000}), 400, TOO_LONG),
    "too many tokens": (*chat(max_tokens=4000), 400, TOO_LONG),
    "chat: unknown model": (*chat(model="huge"), 404, "model_not_found"),
    "completion: no prompt": (COMPLETIONS, {"model": "tiny"}, 400, None),
    "completion: mixed prompts": (*completion(["a", [1]]), 400, None),
    "completion: unknown id": (*completion([99999]), 400, None),
    "completion: suffix": (*completion(suffix="x"), 400, "unsupported_parameter"),
    "completion: nothing asked": (*completion(max_tokens=0), 400, None),
    "completion: unknown model": (*completion(model="huge"), 404, "model_not_found"),
    "response: no input": (RESPONSES, {"model": "tiny"}, 400, None),
    "response: memory": (*response(previous_response_id="resp_1"), 400, "unsupported_parameter"),
    "response: hosted tool": (*response(tools=[{"type": "web_search"}]), 400, None),
    "response: unknown item": (*response([{"type": "computer_call"}]), 400, None),
    "response: unknown model": (*response(model="huge"), 404, "model_not_found"),
    "tokenize: nothing": ("/tokenize", {}, 400, None),
    "detokenize: unknown id": ("/detokenize", {"tokens": [99999]}, 400, None),
}
