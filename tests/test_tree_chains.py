"""Dynamic drafts played again: how deep they go, what they keep, what comes of it."""

from __future__ import annotations

from collections import Counter
from math import log

import pytest

from tree.chains import ChainDraft, Place, replay_chains

SURE, UNSURE = [log(0.8), log(0.1)], [log(0.5), log(0.4)]


def place(*levels: list[float], right: int, rank: int | None = None) -> Place:
    return Place(levels, right, rank)


def test_a_draft_goes_as_deep_as_it_is_trusted_and_keeps_the_likeliest_paths() -> None:
    """The first draft stops behind level 1, where the chain's chance is 0.5; its nodes are 0 and 1,
    of which the target picks the second. The other goes on to level 2, whose chain has 0.64.
    """
    draft = ChainDraft(depth=3, width=2, at_once=1, num_verified=5, least_trust=0.6)
    record = [
        place(UNSURE, SURE, SURE, right=0, rank=1),
        place(SURE, SURE, UNSURE, right=0),  # where the next root would be if this were the chain
        place(SURE, SURE, UNSURE, right=2, rank=1),
        *[place(SURE, SURE, SURE, right=0)] * 2,
    ]
    found = replay_chains(draft, [record], 1, block_size=2, max_provisional=1)
    assert found.tokens == 5
    # 0.8, 0.64, 0.32 and 0.1: the third level is named, and its best kept before the sibling
    assert found.rows == Counter({3: 1, 5: 1})
    assert found.passes == pytest.approx((0.5 + 2) / 2)


def test_tokens_off_the_chain_take_rows_of_the_next_draft() -> None:
    draft = ChainDraft(depth=2, width=2, at_once=2, num_verified=4, least_trust=0.0)
    record = [place(UNSURE, SURE, right=0, rank=1), *[place(SURE, SURE, right=2)] * 4]
    found = replay_chains(draft, [record], 1, block_size=2, max_provisional=1)
    assert found.tokens == 5
    # token 0 is a second choice: token 1 is provisional, verified again before a draft of two nodes
    assert found.rows == Counter({4: 2})
    alone = replay_chains(draft, [record], 1, block_size=2, max_provisional=0)
    assert alone.steps > found.steps


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_sequences_stop_together(batch: int) -> None:
    """Alone an unsure one stops at once; beside sure ones it is taken along."""
    draft = ChainDraft(depth=2, width=2, at_once=1, num_verified=5, least_trust=0.6)
    unsure = [place(UNSURE, UNSURE, right=0)] * 4
    sure = [place(SURE, SURE, right=0)] * 4
    found = replay_chains(draft, [unsure, sure, sure][:batch], batch, 2, 0)
    assert found.steps == 4 * batch
    assert found.passes == (0.5 if batch == 1 else 1.0)
    assert sum(found.rows.values()) == found.rows[3 if batch == 1 else 5]
