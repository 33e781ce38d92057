"""From a completion request to what the engine is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from engine.messages import Submit

from .completion_schemas import CompletionRequest, Prompt
from .echo import EchoedPrompt, echo
from .errors import invalid, unsupported
from .parameters import MAX_TOP_LOGPROBS
from .served import ServedModel
from .structured import check_asked
from .submits import check_characters, check_served, submits
from .tokenizer import ChatTokenizer, EncodedText

SCORED_TOKENS = 32768  # with all alternatives in one reply, where the context is not longer


async def prepare_completion(
    request: CompletionRequest, served: ServedModel, key: str
) -> tuple[list[Submit], list[EchoedPrompt]]:
    """Submits for each prompt in turn, and the prompts to be given back, if they are.

    Raises `ApiError` for all that can refuse the request.
    """
    check_served(request, served)
    await check_asked(request)
    if request.num_prompt_logprobs is not None and not served.scores_prompts:
        raise unsupported("logprobs", "it without 'echo', or null")
    _check_lengths(request.prompt, served)
    prompts = await asyncio.to_thread(_encode, request, served.tokenizer)
    _check_ids(prompts, served.tokenizer.vocab_size)
    _check_scores(request, prompts, served.context_length)
    wanted = [
        submit
        for prompt in prompts
        for submit in submits(request, prompt.ids, "prompt", served, key)
    ]
    if not request.echo:
        return wanted, []
    return wanted, await asyncio.to_thread(_echo, request.prompt, prompts, served.tokenizer)


def _check_lengths(prompts: Iterable[Prompt], served: ServedModel) -> None:
    for prompt in prompts:
        if isinstance(prompt, str):
            check_characters(len(prompt), "prompt", served)


def _encode(request: CompletionRequest, tokenizer: ChatTokenizer) -> list[EncodedText]:
    adds = request.add_special_tokens is not False
    return [
        tokenizer.encode_text(prompt, adds)
        if isinstance(prompt, str)
        else EncodedText(prompt, [False] * len(prompt))
        for prompt in request.prompt
    ]


def _check_ids(prompts: Iterable[EncodedText], vocab_size: int) -> None:
    for prompt in prompts:
        if not prompt.ids:
            raise invalid(
                "The prompt is empty: this model's tokenizer puts no token in front of a text, so "
                "there is nothing to continue.",
                "prompt",
            )
        if not 0 <= min(prompt.ids) <= max(prompt.ids) < vocab_size:
            raise invalid(f"Token ids in 'prompt' must be from 0 to {vocab_size - 1}.", "prompt")


def _check_scores(request: CompletionRequest, prompts: Iterable[EncodedText], context: int) -> None:
    """Raises `ApiError` where the scores would be more than a reply should hold.

    One prompt as long as the context, with all alternatives, is not.
    """
    if (count := request.num_prompt_logprobs) is None:
        return
    most = (MAX_TOP_LOGPROBS + 1) * max(context, SCORED_TOKENS)
    scores = request.num_choices * sum(len(prompt.ids) for prompt in prompts) * (count + 1)
    if scores > most:
        raise invalid(
            f"The prompts' log-probabilities would be {scores} numbers; a reply holds {most}. Send "
            "fewer or shorter prompts, or a smaller 'logprobs'.",
            "logprobs",
        )


def _echo(
    prompts: Iterable[Prompt], encoded: Iterable[EncodedText], tokenizer: ChatTokenizer
) -> list[EchoedPrompt]:
    return [
        echo(prompt if isinstance(prompt, str) else None, own, tokenizer)
        for prompt, own in zip(prompts, encoded, strict=True)
    ]
