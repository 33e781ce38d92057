"""How the served model writes what is not plain text: found out once, at start, and logged."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from . import thinking
from .call_formats import FORMATS, HERMES, LLAMA3_JSON, CallFormat
from .templates import Conversation, Template, TemplateRefused

logger = logging.getLogger(__name__)

AUTO, NONE, THINK = "auto", "none", "think"
CALL_PARSERS = (AUTO, *FORMATS)
REASONING_PARSERS = (AUTO, THINK, NONE)


@dataclass(frozen=True, slots=True)
class Dialect:
    """`calls` is the form of tool calls. `thinks` when answers may begin with thoughts.

    Where the template `shows_tools`, it is what tells the model of them, and of the calls made so
    far. Else a text of ours does (`tool_prompt.py`): every model can be asked.
    """

    calls: CallFormat = HERMES
    shows_tools: bool = False
    knows_system: bool = True
    thinks: bool = False


def dialect_of(
    template: Template | None, call_parser: str = AUTO, reasoning_parser: str = AUTO
) -> Dialect:
    """The dialect of a template, as far as the parsers are `auto`."""
    source = "" if template is None else template.source
    found = _calls_in(source) if call_parser == AUTO else FORMATS[call_parser]
    has_tools = template is not None and "tools" in template.variables
    thinks = reasoning_parser == THINK or (reasoning_parser == AUTO and thinking.CLOSE in source)
    dialect = Dialect(
        calls=found or HERMES,
        shows_tools=has_tools and found is not None,
        knows_system=template is None or _knows_system(template),
        thinks=thinks,
    )
    logger.info(
        "tool calls: %s (%s), tools shown by %s; reasoning: %s (%s)",
        dialect.calls.name,
        _origin(call_parser) if found else "the chat template shows none that is read here",
        "the chat template" if dialect.shows_tools else "a generic system text",
        THINK if thinks else NONE,
        _origin(reasoning_parser),
    )
    return dialect


def _knows_system(template: Template) -> bool:
    messages = [{"role": role, "content": "a"} for role in ("system", "user")]
    try:
        template.render(Conversation(messages), limit=2**31)
    except TemplateRefused:
        return False
    return True


def _origin(parser: str) -> str:
    return "from the chat template" if parser == AUTO else "as asked"


def _calls_in(source: str) -> CallFormat | None:
    """The form that a template shows the model; None when it is none that we can read."""
    if "<function=" in source or "<arg_key>" in source:
        return None
    if HERMES.opening in source:
        return HERMES
    is_llama = "<|eot_id|>" in source and '"parameters"' in source
    return LLAMA3_JSON if is_llama or LLAMA3_JSON.marker in source else None
