"""From a chat request to the prompt: what the template gets, and its encoding in a thread."""

from __future__ import annotations

import asyncio
from typing import Any

from .chat_messages import template_messages
from .dialects import Dialect
from .errors import ApiError, context_length_exceeded, invalid, unsupported
from .prompt_schemas import ChatPrompt
from .request_body import is_plain_name
from .served import ServedModel
from .templates import Conversation, PromptTooLong, Template, TemplateRefused
from .tokenizer import Prompt
from .tool_prompt import in_words

TEMPLATE_GROWTH = 16  # times what it is given a template may write: it may indent JSON
TEMPLATE_CHARS = 64 * 1024  # and so much of its own


def template_of(served: ServedModel) -> Template:
    """Raises `ApiError` where the model has none."""
    if served.tokenizer.template is None:
        raise invalid("The served model has no chat template, so it cannot chat.", "messages")
    return served.tokenizer.template


def conversation_of(request: ChatPrompt, template: Template, dialect: Dialect) -> Conversation:
    """What the template gets. Raises `ApiError` for what it cannot do."""
    messages = template_messages(request.messages)
    tools = [tool.for_template() for tool in request.offered_tools]
    if not dialect.shows_tools:
        messages = in_words(messages, tools, dialect.calls, dialect.knows_system)
    continues_last = request.continue_final_message is True
    return Conversation(
        messages,
        tools if dialect.shows_tools else [],
        _variables(request, template, dialect),
        request.add_generation_prompt is not False and not continues_last,
        continues_last,
    )


def _variables(request: ChatPrompt, template: Template, dialect: Dialect) -> dict[str, Any]:
    """The client's variables, and what `reasoning_effort` is to this template."""
    variables = dict(request.chat_template_kwargs or {})
    for name in variables:
        if name in template.reserved:
            raise _refused_variable(name, "is not for a request to set")
    effort = _effort(request.reasoning_effort, template, dialect)
    for name in effort.keys() & variables:
        raise _refused_variable(name, "and 'reasoning_effort' exclude each other")
    return variables | effort


def _effort(effort: str | None, template: Template, dialect: Dialect) -> dict[str, Any]:
    if effort is None:
        return {}
    if "reasoning_effort" in template.variables:
        return {"reasoning_effort": effort}
    if effort == "none" and "enable_thinking" in template.variables:
        return {"enable_thinking": False}
    if effort == "none" and not dialect.thinks:
        return {}
    raise unsupported("reasoning_effort", "null" if dialect.thinks else '"none" or null')


def _refused_variable(name: str, complaint: str) -> ApiError:
    param = f"chat_template_kwargs.{name}"
    return invalid(f"'{param}' {complaint}.", param if is_plain_name(name) else None)


async def encode(conversation: Conversation, served: ServedModel) -> Prompt:
    """In a thread: the tokenizer releases the GIL, and other streams go on. Raises `ApiError`.

    What a template may write is bounded, so that it ends soon whatever it is given.
    """
    most = TEMPLATE_GROWTH * characters_of(conversation) + TEMPLATE_CHARS
    try:
        return await asyncio.to_thread(served.tokenizer.encode_chat, conversation, most)
    except TemplateRefused as error:
        raise invalid(str(error), "messages") from None
    except PromptTooLong:
        raise context_length_exceeded(
            served.context_length,
            f"the length of your messages in the model's format is over {most} characters. Please "
            "reduce it.",
            "messages",
        ) from None


def characters_of(conversation: Conversation) -> int:
    """How much text a template is given."""
    given = [conversation.messages, conversation.tools, conversation.variables]
    return sum(map(_characters, given))


def _characters(value: Any) -> int:
    """Of all text in a JSON value, keys too."""
    match value:
        case str():
            return len(value)
        case dict():
            return sum(_characters(key) + _characters(item) for key, item in value.items())
        case list():
            return sum(map(_characters, value))
        case _:
            return 0
