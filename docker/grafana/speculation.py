"""Whether drafting pays, and where a step's time goes."""

from __future__ import annotations

from panels import Panel, mean, quantiles, rate, share_by

_DRAFTS = rate("vllm:spec_decode_num_drafts_total")
_TREES = rate("falcon:tree_depth_accepted_total", more='depth="0"')
_NODES = rate("vllm:spec_decode_num_draft_tokens_total")
_ACCEPTED = rate("vllm:spec_decode_num_accepted_tokens_total")
_OUTPUT = rate("vllm:generation_tokens_total")
_STEPS = rate("falcon:plan_steps_total")
_TAU = f"1 + {_ACCEPTED} / {_DRAFTS}"
_FROM_DRAFTS = f"{_ACCEPTED} / {_OUTPUT}"
_UNDRAFTED = rate("falcon:plain_steps_total")

ROWS = {
    "At a glance": [
        Panel(
            "Tokens per drafted step (tau)",
            "none",
            {"": _TAU},
            "The bonus token counted: 1 would be plain decoding's.",
            kind="stat",
        ),
        Panel("Output from drafts", "percentunit", {"": _FROM_DRAFTS}, kind="stat"),
        Panel("Steps that draft", "percentunit", {"": f"1 - {_UNDRAFTED} / {_STEPS}"}, kind="stat"),
        Panel("Nodes of a tree", "none", {"": f"{_NODES} / {_DRAFTS}"}, kind="stat"),
        Panel("Drafted and accepted", "suffix: tok/s", {"": _ACCEPTED}, kind="stat"),
    ],
    "Acceptance": [
        Panel("Tau over time", "none", {"tau": _TAU}),
        Panel(
            "Trees right at each depth",
            "percentunit",
            share_by("depth", "falcon:tree_depth_accepted_total", _TREES),
            "How often one of a tree's nodes of this depth was right. The root, 0, always is.",
        ),
        Panel(
            "Accepted tokens by place in the step",
            "percentunit",
            share_by("position", "vllm:spec_decode_num_accepted_tokens_per_pos_total", _DRAFTS),
            kind="bargauge",
        ),
        Panel(
            "Tokens per step of a request",
            "none",
            quantiles("falcon:request_tokens_per_step"),
            "A low median with a high p90: the drafter suits some traffic only.",
        ),
    ],
    "Drafting": [
        Panel(
            "Drafted, accepted, given",
            "suffix: tok/s",
            {"drafted nodes": _NODES, "accepted": _ACCEPTED, "output": _OUTPUT},
            "Every node of a tree is drafted, one path of it can be accepted.",
        ),
        Panel("Output from drafts over time", "percentunit", {"share": _FROM_DRAFTS}),
        Panel(
            "Plan in use",
            "percentunit",
            share_by("plan", "falcon:plan_steps_total", _STEPS),
            "Of the steps of requests: nodes x passes of the drafter, 0x0 for no draft, predicted "
            "for the client's prediction, lookup for prompt lookup.",
            stacked=True,
        ),
        Panel(
            "Steps without a draft, by why",
            "percentunit",
            share_by("reason", "falcon:plain_steps_total", _STEPS),
            "request: it asked for none. load: it would not pay now. no_match: prompt lookup found "
            "nothing that pays. no_drafter: nothing drafts here. fault: drafting failed for this "
            "request.",
            stacked=True,
        ),
    ],
    "Time": [
        Panel(
            "Mean step",
            "s",
            {
                part: mean(f"falcon:step_{part}_seconds")
                for part in ("draft", "verify", "host", "prefill")
            },
            "Each over the steps that did it.",
        ),
        *(
            Panel(f"Step: {part}", "s", quantiles(f"falcon:step_{part}_seconds"))
            for part in ("draft", "verify", "host")
        ),
    ],
    "Work": [
        Panel(
            "Passes of the drafter",
            "ops",
            {"passes": rate("falcon:drafter_passes_total")},
        ),
        Panel(
            "Tokens that clients predicted",
            "suffix: tok/s",
            {"{{outcome}}": rate("falcon:predicted_tokens_total", "outcome")},
        ),
        Panel(
            "Tokens in a step",
            "short",
            quantiles("vllm:iteration_tokens_total"),
            "Prompt tokens run, and tokens given, of all requests.",
        ),
        Panel(
            "Time between tokens",
            "s",
            quantiles("vllm:inter_token_latency_seconds"),
        ),
    ],
}
