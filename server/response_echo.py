"""What a response says of the request that it answers: the parameters as they were applied."""

from __future__ import annotations

from typing import Any

from .response_schemas import ReasoningOptions, ResponseRequest, TextOptions


def echo(request: ResponseRequest) -> dict[str, Any]:
    """OpenAI's defaults stand where the request said nothing. Nothing is ever stored."""
    text = request.text or TextOptions()
    reasoning = request.reasoning or ReasoningOptions()
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": request.model,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.effort, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {
            "format": {"type": "text"} if text.format is None else text.format.echo(),
            "verbosity": text.verbosity or "medium",
        },
        "tool_choice": request.tool_choice or "auto",
        "tools": [tool.echo() for tool in request.tools or []],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled",
        **_labels(request),
    }


def _labels(request: ResponseRequest) -> dict[str, str]:
    """OpenAI's schema has no null for those that were not sent."""
    sent = {
        "prompt_cache_key": request.prompt_cache_key,
        "safety_identifier": request.safety_identifier,
        "user": request.user,
    }
    return {name: text for name, text in sent.items() if text is not None}
