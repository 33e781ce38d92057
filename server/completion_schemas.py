"""What a completion request may say beside the parameters that all endpoints share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .errors import invalid, unsupported
from .parameters import INT32_MAX, MAX_TOP_LOGPROBS, Parameters
from .strict import sent_as
from .structured import FormattedParameters
from .unsupported import NEUTRAL

MAX_PROMPTS = 64
MAX_COMPLETIONS = 64
DEFAULT_TOKENS = 16

Prompt = str | list[int]
# What `prompt` may hold as it is sent.
_Ids = Annotated[list[Annotated[int, Field(ge=0, le=INT32_MAX)]], Field(min_length=1)]
_Prompts = (
    str
    | _Ids
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
)


def _list_of_prompts(prompt: object) -> object:
    """Prompts as a list, whichever of the four forms was sent."""
    prompts = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise PydanticCustomError(
            "prompts", "A list of prompts must hold 1 to {limit}", {"limit": MAX_PROMPTS}
        )
    if not all(isinstance(own, str) for own in prompts) and not all(map(_are_ids, prompts)):
        raise PydanticCustomError(
            "prompt",
            "Prompt must be a string, a list of strings, a list of token ids, or a list of such "
            "lists, none of them empty and not mixed; token ids are whole numbers from 0",
        )
    return prompts


def _are_ids(prompt: object) -> bool:
    """A list of ids, not empty; true and false are no numbers."""
    return isinstance(prompt, list) and bool(prompt) and all(type(i) is int for i in prompt)


class CompletionRequest(FormattedParameters, Parameters):
    # What chat honours would have to be ignored.
    neutral = NEUTRAL | {"max_completion_tokens": [], "messages": [], "top_logprobs": []}

    prompt: Annotated[
        list[Prompt], BeforeValidator(_list_of_prompts, json_schema_input_type=_Prompts)
    ]
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: Annotated[str | None, sent_as(Literal[""] | None)] = None
    best_of: int | None = None
    add_special_tokens: bool | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def default_tokens(self) -> int:
        return DEFAULT_TOKENS

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.logprobs if self.echo else None

    @property
    def num_prompts(self) -> int:
        return len(self.prompt)

    @property
    def continues_text(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        if self.num_prompts * self.num_choices > MAX_COMPLETIONS:
            raise invalid(f"'n' times the prompts must be at most {MAX_COMPLETIONS}.", "n")
        if self.max_tokens == 0 and not self.echo:
            raise invalid("'max_tokens' 0 is only allowed with 'echo': true.", "max_tokens")
        if self.suffix:
            raise unsupported("suffix", '"" or null')
        if self.best_of not in (None, self.num_choices):
            raise invalid("'best_of' must equal 'n': all completions are returned.", "best_of")
