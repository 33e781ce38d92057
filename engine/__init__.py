"""Owns the device: target model, KV slots, attention, noise and sampling, the step, the worker.

Importing it loads no torch, so that the HTTP process can use `engine.messages`; `LLM` comes with
everything when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .messages import Grammar, SamplingParams

if TYPE_CHECKING:
    from .offline import LLM

__all__ = ["LLM", "Grammar", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from .offline import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
