"""What crosses the socket between the HTTP process and the engine process; imports no torch.

Every message is one length-prefixed msgpack frame of the tagged union `ToEngine` or `FromEngine`.
The first one to the engine is its `EngineConfig`. The engine sends at most one `StepReport` a step,
whatever the number of running requests.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .config import EngineConfig
from .grammar.sources import Kind

FinishReason = Literal["stop", "length", "error"]
Source = Literal["drafted", "predicted", "bonus"]  # by us, by the client, the target's own pick
PlainReason = Literal["request", "load", "no_match", "no_drafter", "fault"]

MAX_LOGPROBS = 20  # alternatives beside a token: bounds what a step sends


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one request picks its tokens. Ranges are checked by whoever builds it from user input.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `seed` is any unsigned
    64-bit integer; equal seeds give equal outputs. The rest changes the logits before temperature,
    as `processors.py` says; `logit_bias` is keyed by token id.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    @property
    def is_truncated(self) -> bool:
        """Whether only some of the likeliest tokens may be picked."""
        return self.temperature > 0 and (self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0)

    @property
    def changes_logits(self) -> bool:
        """Whether there are biases, bans or penalties."""
        return bool(self.logit_bias) or self.min_tokens > 0 or self.has_penalties


class Grammar(msgspec.Struct, frozen=True):
    """What an answer has to look like; `engine/grammar/sources.py` says what each kind means.

    `text` is JSON for "json_schema", "choice" and "structural_tag", and unused for "json_object".
    """

    kind: Kind
    text: str = ""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Run a request. Generation ends at a token of `stop_token_ids` or after `max_tokens`; with
    `max_tokens` 0 it ends when the prompt has been read.

    `output_ids` are tokens that an earlier engine already gave this request: generation goes on
    behind them, and they count towards `max_tokens`, `min_tokens` and the penalties. Requests of
    one `key` share what is their due; `speculative` false decodes plainly, with the same tokens.
    `logprobs` asks for the log-probability of each token and of so many likeliest ones beside it,
    `prompt_logprobs` for those of the prompt's tokens but the first, of which an earlier engine
    gave `scores_given`. `prediction_ids` are the client's guess of the output, drafted where the
    output follows it; `trace` asks for a `StepTrace` of every step. With a `grammar` only tokens
    that it allows are picked, and stop tokens only where the text is complete; where nothing can
    follow, generation ends as well.
    """

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    sampling: SamplingParams
    stop_token_ids: list[int]
    output_ids: list[int] = []
    key: str = ""
    speculative: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    scores_given: int = 0
    prediction_ids: list[int] = []
    trace: bool = False
    grammar: Grammar | None = None

    @property
    def changes_logits(self) -> bool:
        """Whether anything is to be done before temperature."""
        return self.sampling.changes_logits or self.grammar is not None

    @property
    def picks_likeliest(self) -> bool:
        """Whether each token is the likeliest by the target's logits as they are."""
        return self.sampling.temperature == 0 and not self.changes_logits


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a request. Answered by `Forgotten`, also for unknown and finished ids."""

    request_id: str


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answer with `Pong` before the next step."""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Leave the loop and exit with status 0."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Sent once, when the models are loaded and warm.

    `plan` says what is drafted, `looks_up` whether texts are looked up in themselves too. Without
    `scores_prompts` no request may ask for `prompt_logprobs`.
    """

    target: str
    drafter: str | None
    plan: str
    dtype: str
    device: str
    context_length: int
    max_num_seqs: int
    scores_prompts: bool = True
    looks_up: bool = False


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Sent instead of `Ready`: the models cannot be served, and why, in one paragraph."""

    reason: str


class Forgotten(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Abort`: no output of the request follows."""

    request_id: str


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The engine is alive; sent between two steps, or at once when it has nothing to do."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """One token's log-probability under the target, and the likeliest tokens there, best first.

    They are those of the target's own logits, before bias, penalties and temperature.
    """

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class StepTrace(msgspec.Struct, frozen=True, array_like=True):
    """What one step verified for one request.

    Nodes of the verified tree have `tokens` and `parents`; node 0 is the newest final token, with
    parent -1. Nodes up to `root` are what the step before left provisional: the draft hangs below
    them. `path` are the nodes that the target's picks followed; the bonus token behind it is none.
    Of the tokens picked the last `provisional` are not given yet: the next step verifies them
    again. The drafter ran `passes` for this request; the times are those of the whole batch.
    """

    tokens: list[int]
    parents: list[int]
    root: int
    path: list[int]
    provisional: int
    passes: int
    draft_ms: float
    verify_ms: float


class RequestOutput(msgspec.Struct, frozen=True):
    """New tokens of one request in one step, in order; the stop token itself is included.

    `sources` says of each where it came from: `accepted` of them from a draft, this step's or, if
    they had been provisional, that of the step before. `drafted` nodes were verified for it, of
    which `predicted` were the client's. `rejected_predicted` of these are the one that the target's
    picks left and all behind it; they may be proposed again. What was cut after a stop or the
    length limit is not accepted, and was not rejected. `depth` is how far down its draft the
    target's picks went, some of them perhaps provisional. `cached_tokens` is the length of the
    prompt prefix that was not computed again, `slot_ms` how long the request has had its slot.
    `logprobs` has an entry for each token where the request asked for them, else none.
    `prompt_logprobs` are those of the prompt's next tokens, as they are computed: all come before
    the first new token. With `finish_reason` "error", `refusal` says what is wrong with the
    request, if it is at fault.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    drafted: int
    accepted: int
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    sources: list[Source] = []
    predicted: int = 0
    rejected_predicted: int = 0
    trace: StepTrace | None = None
    refusal: str = ""
    depth: int = 0
    slot_ms: float = 0.0


class StepReport(msgspec.Struct, frozen=True, tag=True):
    """Everything one step did: outputs, and figures for the metrics.

    Times are in milliseconds; `prefill_ms` is that of all prompts of this step and `host_ms`
    all that is not prefill, drafting or verification. `accepted_lengths` holds, for each request
    that drafted in this step, how many drafted tokens were accepted (bonus excluded), and `depths`
    how far down its draft the target's picks went, unless it was the client's. `computed_tokens` of
    prompts were run in this step (a prompt's last token counts when the request gets its slot, as
    do the `cached_tokens` that need not be run). `plans` counts requests by what was drafted for
    each, "NODESxPASSES", "predicted" or "lookup", `plain` those for which it was nothing, by why.
    """

    outputs: list[RequestOutput]
    running: int
    waiting: int
    kv_usage: float = 0.0
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    host_ms: float = 0.0
    passes: float = 0.0
    drafted: int = 0
    accepted_lengths: list[int] = []
    depths: list[int] = []
    computed_tokens: int = 0
    cached_tokens: int = 0
    plans: dict[str, int] = {}
    plain: dict[PlainReason, int] = {}


ToEngine = EngineConfig | Submit | Abort | Ping | Shutdown
FromEngine = Ready | Refused | StepReport | Forgotten | Pong
