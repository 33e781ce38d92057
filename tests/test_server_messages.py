"""Messages and tools: malformed ones are a 400 naming the field, good ones reach the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.answering import validated
from server.chat_schemas import ChatCompletionRequest
from server.dialects import Dialect, dialect_of
from server.errors import ApiError
from server.prompts import conversation_of
from server.templates import ChatTemplate
from server.tokenizer import ChatTokenizer, load_tokenizer
from tests.server_harness import SPECIALS, build_model_folder

ASK = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"a": 1}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "12"}
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
# Writes all that it is given as JSON, and is no model's.
TEMPLATE = (
    "{{ {'messages': messages, 'tools': tools, 'mood': mood | default(none),"
    " 'go': add_generation_prompt} | tojson }}"
)


def request_of(messages: list[dict[str, Any]], **fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": messages} | fields
    request = validated(ChatCompletionRequest, json.loads(json.dumps(body)))
    request.check()
    return request


def refused(messages: list[dict[str, Any]], **fields: Any) -> tuple[str | None, str]:
    with pytest.raises(ApiError) as error:
        request_of(messages, **fields)
    assert error.value.status == 400
    told = error.value.body["error"]
    return told["param"], str(told["message"])


def changed(message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return message | fields


def call_of(**fields: Any) -> dict[str, Any]:
    """An assistant's message whose call has other fields."""
    return changed(CALLING, tool_calls=[CALL | fields])


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages.1.role"),
        ({"content": "x"}, "messages.1.role"),
        ({"role": "user"}, "messages.1.content"),
        ({"role": "tool", "content": None, "tool_call_id": "c1"}, "messages.1.content"),
        ({"role": "assistant"}, "messages.1.content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages.1.content"),
        ({"role": "assistant", "content": {}}, "messages.1.content"),
        (changed(ASK, name=""), "messages.1.name"),
        (changed(ASK, name="a b"), "messages.1.name"),
        (changed(ASK, name="<|end|>"), "messages.1.name"),
        (changed(ASK, name="a\n"), "messages.1.name"),
        (changed(ASK, name="x" * 65), "messages.1.name"),
        (changed(ASK, tool_calls=[CALL]), "messages.1.tool_calls"),
        (changed(ASK, tool_call_id="c1"), "messages.1.tool_call_id"),
        (changed(ASK, reasoning="hm"), "messages.1.reasoning"),
        (changed(ASK, reasoning_content="hm"), "messages.1.reasoning_content"),
        (changed(ASK, refusal="no"), "messages.1.refusal"),
        (changed(CALLING, reasoning="a", reasoning_content="b"), "messages.1.reasoning"),
        (changed(CALLING, reasoning=3), "messages.1.reasoning"),
        (changed(CALLING, tool_calls={}), "messages.1.tool_calls"),
        (changed(CALLING, tool_calls=[CALL] * 129), "messages.1.tool_calls"),
        (changed(CALLING, tool_calls=[{}]), "messages.1.tool_calls.0.id"),
        (call_of(id=""), "messages.1.tool_calls.0.id"),
        (call_of(id="x" * 257), "messages.1.tool_calls.0.id"),
        (call_of(type="custom"), "messages.1.tool_calls.0.type"),
        (call_of(function=None), "messages.1.tool_calls.0.function"),
        (call_of(function={"name": "get"}), "messages.1.tool_calls.0.function.arguments"),
        (
            call_of(function={"name": "get", "arguments": {}}),
            "messages.1.tool_calls.0.function.arguments",
        ),
        (
            call_of(function={"name": "g t", "arguments": ""}),
            "messages.1.tool_calls.0.function.name",
        ),
        ({"role": "tool", "content": "12"}, "messages.1.tool_call_id"),
        (RESULT, "messages.1.tool_call_id"),
    ],
)
def test_a_malformed_message_is_refused_by_the_name_of_its_field(
    message: dict[str, Any], param: str
) -> None:
    assert refused([ASK, message])[0] == param


def tool_of(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": TOOL["function"] | fields}]}


def named(name: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    inner = {"mode": mode, "tools": [named(name) for name in names]}
    return {"type": "allowed_tools", "allowed_tools": inner}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [3]}, "tools.0"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "name": "get"}]}, "tools.0.function"),
        (tool_of(name="g.t"), "tools.0.function.name"),
        (tool_of(name="x" * 65), "tools.0.function.name"),
        (tool_of(name="get\n"), "tools.0.function.name"),
        (tool_of(description=[]), "tools.0.function.description"),
        (tool_of(strict="yes"), "tools.0.function.strict"),
        (tool_of(parameters=[]), "tools.0.function.parameters"),
        (tool_of(parameters={"type": "array"}), "tools.0.function.parameters"),
        (tool_of(parameters={"properties": []}), "tools.0.function.parameters"),
        (tool_of(parameters={"properties": {"a": 3}}), "tools.0.function.parameters"),
        (tool_of(parameters={"required": "a"}), "tools.0.function.parameters"),
        ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("get")}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": named("put")}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": named(3)}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "get"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": named("get") | {"x": 1}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": allowed("auto")}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": allowed("none", "get")}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": allowed("auto", "put")}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"include_reasoning": "no"}, "include_reasoning"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"add_generation_prompt": 0}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"stream_interval": 1025}, "stream_interval"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
    ],
)
def test_a_malformed_field_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    assert refused([ASK], **fields)[0] == param


def test_complaints_say_what_is_allowed() -> None:
    assert "the role 'tool'" in refused([{"role": "function", "content": "x"}])[1]
    message = refused([ASK], tools=[TOOL], tool_choice="any")[1]
    assert '{"type": "function", "function": {"name": ...}}' in message


def test_a_continuation_needs_an_assistants_text_at_the_end_and_no_other_prompt() -> None:
    said = {"role": "assistant", "content": "I th"}
    assert request_of([ASK, said], continue_final_message=True).continues_text
    for messages in ([ASK], [ASK, CALLING], [ASK, changed(said, content="", reasoning="x")]):
        assert refused(messages, continue_final_message=True)[0] == "continue_final_message"
    param, _ = refused([ASK, said], continue_final_message=True, add_generation_prompt=True)
    assert param == "continue_final_message"


def test_what_a_reply_said_can_be_sent_back_as_it_is() -> None:
    reply = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "reasoning": "hm",
        "reasoning_content": "hm",
    }
    assert request_of([ASK, reply]).messages[1].thoughts == "hm"
    assert request_of([ASK, changed(reply, reasoning=None, reasoning_content=None, refusal="No.")])


def test_all_forms_of_tool_choice_are_understood() -> None:
    other = {"type": "function", "function": {"name": "put"}}

    def choice(value: object) -> tuple[str, tuple[str, ...] | None, bool]:
        found = request_of([ASK], tools=[TOOL, other], tool_choice=value).choice_of_tools
        return found.mode, found.names, found.is_named

    assert choice(None) == choice("auto") == ("auto", None, False)
    assert choice("none") == ("none", None, False)
    assert choice("required") == ("required", None, False)
    assert choice(named("put")) == ("required", ("put",), True)
    assert choice(allowed("required", "put", "get")) == ("required", ("put", "get"), False)
    assert choice(allowed("auto", "put")) == ("auto", ("put",), False)
    assert request_of([ASK]).choice_of_tools.mode == "none"


def rendered(
    messages: list[dict[str, Any]], dialect: Dialect | None = None, **fields: Any
) -> dict[str, Any]:
    template = ChatTemplate(TEMPLATE, {"bos_token": "<|bos|>"})
    request = request_of(messages, **fields)
    known = dialect or Dialect(shows_tools=True)
    conversation = conversation_of(request, template, known)
    shown: dict[str, Any] = json.loads(template.render(conversation, 10**6))
    return shown


def test_a_template_gets_calls_results_and_thoughts_as_hugging_faces_do() -> None:
    thoughtful = changed(CALLING, reasoning="Hm.", refusal=None)
    shown = rendered([ASK, thoughtful, RESULT, changed(ASK, name="bob")], tools=[TOOL])
    made = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": {"a": 1}}}
    assert shown["messages"] == [
        ASK,
        {
            "role": "assistant",
            "content": "",
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
            "tool_calls": [made],
        },
        {"role": "tool", "content": "12", "tool_call_id": "c1", "name": "get"},
        ASK | {"name": "bob"},
    ]
    assert shown["tools"] == [TOOL]
    assert shown["go"] is True


@pytest.mark.parametrize("arguments", ["", "x", "[1]", "{", '{"a": 1, "a": 2}', "[" * 5000, "NaN"])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    call = call_of(function={"name": "get", "arguments": arguments})
    function = rendered([ASK, call])["messages"][1]["tool_calls"][0]["function"]
    assert function["arguments"] == arguments


def test_tools_are_shown_unless_none_may_be_called() -> None:
    bare = {"type": "function", "function": {"name": "now", "strict": True, "description": "d"}}
    told = {"name": "now", "description": "d", "parameters": {"type": "object", "properties": {}}}
    assert rendered([ASK], tools=[bare])["tools"] == [{"type": "function", "function": told}]
    assert rendered([ASK], tools=[bare], tool_choice="none")["tools"] is None
    assert rendered([ASK])["tools"] is None


def test_variables_reach_the_template_and_replace_nothing() -> None:
    assert rendered([ASK], chat_template_kwargs={"mood": [1, {"a": None}]})["mood"] == [
        1,
        {"a": None},
    ]
    for name in ("messages", "tools", "bos_token", "add_generation_prompt", "raise_exception"):
        with pytest.raises(ApiError, match="not for a request to set") as error:
            rendered([ASK], chat_template_kwargs={name: 1})
        assert error.value.body["error"]["param"] == f"chat_template_kwargs.{name}"
    assert rendered([ASK], add_generation_prompt=False)["go"] is False


@pytest.mark.parametrize(
    ("source", "thinks", "effort", "variables"),
    [
        ("{{ reasoning_effort }}", True, "high", {"reasoning_effort": "high"}),
        ("{{ reasoning_effort }}", False, "none", {"reasoning_effort": "none"}),
        ("{{ enable_thinking }}", True, "none", {"enable_thinking": False}),
        ("{{ enable_thinking }}", True, "low", None),
        ("x", False, "none", {}),
        ("x", True, "none", None),
        ("x", False, "high", None),
    ],
)
def test_effort_is_what_the_template_can_do_or_refused(
    source: str, thinks: bool, effort: str, variables: dict[str, Any] | None
) -> None:
    template, request = ChatTemplate(source, {}), request_of([ASK], reasoning_effort=effort)
    dialect = Dialect(thinks=thinks)
    if variables is None:
        with pytest.raises(ApiError, match="reasoning_effort"):
            conversation_of(request, template, dialect)
    else:
        assert conversation_of(request, template, dialect).variables == variables


def test_effort_and_the_same_variable_exclude_each_other() -> None:
    request = request_of(
        [ASK], reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}
    )
    with pytest.raises(ApiError, match="exclude each other"):
        conversation_of(request, ChatTemplate("{{ enable_thinking }}", {}), Dialect())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    template = TEMPLATE + "{{ messages[-1]['content'] | trim }}<|end|>"
    return load_tokenizer(build_model_folder(tmp_path_factory.mktemp("m"), template))


nasty = st.lists(st.sampled_from([*SPECIALS, "<|", "|>", '"', "a", "\\"]), max_size=4).map("".join)
values = st.recursive(
    nasty, lambda inner: st.one_of(st.lists(inner), st.dictionaries(nasty, inner)), max_leaves=4
)


@given(text=nasty, value=values)
def test_no_string_of_a_users_becomes_a_special_token(
    tokenizer: ChatTokenizer, text: str, value: Any
) -> None:
    schema = {"type": "object", "properties": {text: {"default": value}}, "x": value}
    tool = {"name": "get", "description": text, "parameters": schema}
    escaped = json.dumps({text: value}).replace("<", "\\u003c")
    called = call_of(id="i" + text, function={"name": "get", "arguments": escaped})
    raw = call_of(id="r" + text, function={"name": "get", "arguments": text})
    messages = [
        {"role": "system", "content": text},
        changed(called, content=text, reasoning=text),
        changed(raw, content=None),
        {"role": "tool", "tool_call_id": "i" + text, "content": text},
        {"role": "user", "content": [{"type": "text", "text": text}] * 2},
    ]
    request = request_of(
        messages,
        tools=[{"type": "function", "function": tool}],
        chat_template_kwargs={"mood": value},
    )
    assert tokenizer.template is not None
    for dialect in (Dialect(shows_tools=True), Dialect(shows_tools=False)):
        conversation = conversation_of(request, tokenizer.template, dialect)
        ids = tokenizer.encode_chat(conversation).ids
        end = tokenizer.ids_of(["<|end|>"])
        assert {i for i in ids if i in tokenizer.special_ids} == end
        assert sum(i in end for i in ids) == 1


def test_a_template_of_its_own_for_tools_is_used_with_tools(tmp_path: Path) -> None:
    folder = build_model_folder(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    names = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{tools}}"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": names}))
    template = load_tokenizer(folder).template
    assert template is not None
    assert "tools" in template.variables
    plain, tools = request_of([ASK]), request_of([ASK], tools=[TOOL])
    known = Dialect(shows_tools=True)
    assert template.render(conversation_of(plain, template, known), 99) == "plain"
    assert "get" in template.render(conversation_of(tools, template, known), 999)


HERMES_SOURCE = '{{ tools }}<tool_call>{"name": 1, "arguments": 2}</tool_call>'


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (HERMES_SOURCE, {}, ("hermes", True, False)),
        ('{{ tools }}{"name": n, "parameters": p}<|eot_id|>', {}, ("llama3_json", True, False)),
        ("{{ tools }}<|python_tag|>", {}, ("llama3_json", True, False)),
        ("{{ tools }}[TOOL_CALLS]", {}, ("hermes", False, False)),
        ("{{ tools }}<tool_call><function=", {}, ("hermes", False, False)),
        ("{{ tools }}[TOOL_CALLS]", {"call_parser": "llama3_json"}, ("llama3_json", True, False)),
        ("plain", {"call_parser": "llama3_json"}, ("llama3_json", False, False)),
        ("a</think>", {}, ("hermes", False, True)),
        ("a</think>", {"reasoning_parser": "none"}, ("hermes", False, False)),
        ("plain", {"reasoning_parser": "think"}, ("hermes", False, True)),
    ],
)
def test_the_dialect_is_the_templates_or_the_one_asked_for(
    source: str,
    options: dict[str, str],
    expected: tuple[str, bool, bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    dialect = dialect_of(ChatTemplate(source, {}), **options)
    assert (dialect.calls.name, dialect.shows_tools, dialect.thinks) == expected
    assert f"tool calls: {expected[0]} (" in caplog.text
    assert ("(as asked), tools" in caplog.text) is ("call_parser" in options)


def test_a_template_that_refuses_system_messages_is_found_out() -> None:
    source = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No.') }}{% endif %}"
    assert not dialect_of(ChatTemplate(source, {})).knows_system
    assert dialect_of(ChatTemplate("x", {})).knows_system
    assert dialect_of(None).knows_system


def test_a_template_without_tools_is_told_of_them_in_words() -> None:
    system = {"role": "system", "content": "Be kind."}
    shown = rendered([system, ASK], Dialect(), tools=[TOOL])
    assert shown["tools"] is None
    text = shown["messages"][0]["content"]
    assert text.startswith("Be kind.\n\nYou can call functions.")
    assert json.dumps(TOOL) in text.splitlines()
    assert '<tool_call>\n{"name": "name of the function", "arguments": {}}\n</tool_call>' in text
    assert shown["messages"][1] == ASK
    first, second = rendered([ASK], Dialect(), tools=[TOOL])["messages"]
    assert (first["role"], second) == ("system", ASK)
    (only,) = rendered([ASK], Dialect(knows_system=False), tools=[TOOL])["messages"]
    assert only == {"role": "user", "content": f"{first['content']}\n\nhi"}
    assert rendered([system, ASK], Dialect())["messages"] == [system, ASK]


def test_calls_and_results_of_earlier_turns_are_told_in_words() -> None:
    second = CALL | {"id": "c2", "function": {"name": "put", "arguments": "{}"}}
    calling = changed(CALLING, content="Well.", tool_calls=[CALL, second])
    messages = [ASK, calling, RESULT, changed(RESULT, tool_call_id="c2", content="ok"), ASK]
    assert rendered(messages, Dialect())["messages"] == [
        ASK,
        {
            "role": "assistant",
            "content": 'Well.\n<tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "put", "arguments": {}}\n</tool_call>',
        },
        {
            "role": "user",
            "content": "<tool_response>\n12\n</tool_response>\n"
            "<tool_response>\nok\n</tool_response>",
        },
        ASK,
    ]
