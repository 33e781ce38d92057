"""The sampler's law: noise, truncation, and that planted biases would be caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from engine.messages import SamplingParams
from engine.noise import gumbel, hash_tokens, position_keys
from engine.sampling import NUCLEUS_WIDTH, RIVALS, Sampler, nucleus_floor, processed

CPU = torch.device("cpu")
DRAWS = 1_000_000
LOGITS = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -3.0, 1.5, -6.0])


def draw(noise: Callable[[Tensor, Tensor], Tensor], temperature: float = 1.0) -> Tensor:
    """Counts [V] of a million picks at as many positions of one seed."""
    keys = position_keys([7] * DRAWS, range(DRAWS))
    picks = (LOGITS / temperature + noise(keys, hash_tokens(len(LOGITS), CPU))).argmax(-1)
    return picks.bincount(minlength=len(LOGITS))


def p_value(counts: Tensor, temperature: float = 1.0) -> float:
    expected = torch.softmax(LOGITS.double() / temperature, dim=-1) * DRAWS
    return float(stats.chisquare(counts.double().numpy(), expected.numpy()).pvalue)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_picks_follow_the_softmax(temperature: float) -> None:
    assert p_value(draw(gumbel, temperature), temperature) > 1e-3


def test_picks_at_one_position_follow_the_softmax_over_seeds() -> None:
    keys = position_keys(range(DRAWS), [3] * DRAWS)
    picks = (LOGITS + gumbel(keys, hash_tokens(len(LOGITS), CPU))).argmax(-1)
    assert p_value(picks.bincount(minlength=len(LOGITS))) > 1e-3


@pytest.mark.parametrize(
    "biased",
    [
        lambda keys, tokens: 0.98 * gumbel(keys, tokens),
        lambda keys, tokens: gumbel(keys, tokens).clamp(max=4.0),
        lambda keys, tokens: gumbel(keys, tokens) + 0.03 * torch.eye(8)[3],
        lambda keys, tokens: gumbel(keys[: DRAWS // 250].repeat(250), tokens),
        lambda keys, tokens: torch.randn(len(keys), 8, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["scaled", "clipped", "favourite", "repeated", "normal"],
)
def test_the_test_catches_a_biased_sampler(biased: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert p_value(draw(biased)) < 1e-6


def test_neighbouring_seeds_positions_and_tokens_are_uncorrelated() -> None:
    tokens = hash_tokens(64, CPU)
    by_position = gumbel(position_keys([1] * 2000, range(2000)), tokens)
    by_seed = gumbel(position_keys(range(2000), [1] * 2000), tokens)
    for noise in (by_position, by_seed):
        for one, other in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
            pair = torch.stack((one.flatten(), other.flatten()))
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.012  # 4 standard deviations


def test_noise_is_a_pure_function_of_seed_position_and_token() -> None:
    tokens = hash_tokens(32, CPU)
    both = gumbel(position_keys([5, 9], [2, 100]), tokens)
    assert torch.equal(both[1], gumbel(position_keys([9], [100]), tokens)[0])
    assert torch.equal(both[0, :8], gumbel(position_keys([5], [2]), tokens[:8])[0])
    high = position_keys([2**64 - 1, 2**63], [0, 2**31])
    assert torch.isfinite(gumbel(high, tokens)).all()


def kept(logits: list[float], **params: float) -> list[int]:
    rows = processed(torch.tensor(logits), SamplingParams(**params))  # type: ignore[arg-type]
    return torch.isfinite(rows).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 1e-9}, [0]),
        ({"min_p": 0.4}, [0, 1]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 3, "top_p": 0.9}, [0, 1, 2]),
        ({"temperature": 0.5, "top_p": 0.7}, [0]),
        ({"temperature": 0.5, "min_p": 0.2}, [0, 1]),
    ],
)
def test_truncation_keeps_what_its_definition_says(
    params: dict[str, float], expected: list[int]
) -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/8 at temperature 1."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.1249]).log().tolist()
    assert kept(logits, **params) == expected


def test_wide_nucleus_equals_a_whole_sort() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4 * NUCLEUS_WIDTH)
    floor = nucleus_floor(logits, 0.95)
    for row, own in zip(logits, floor[:, 0], strict=True):
        probabilities = row.softmax(-1).sort(descending=True).values
        needed = int((probabilities.cumsum(0) < 0.95).sum()) + 1
        assert int((row >= own).sum()) == needed


def test_greedy_and_sampling_share_a_batch() -> None:
    sampler = Sampler(8, CPU)
    logits = torch.stack((LOGITS, LOGITS))
    greedy, warm = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, seed=3)
    alone = sampler.pick(LOGITS[None], [warm], [11])
    assert sampler.pick(logits, [greedy, warm], [10, 11]) == [3, *alone]


def test_blocks_share_the_noise_of_their_position() -> None:
    sampler = Sampler(8, CPU)
    logits = LOGITS.expand(1, 3, 2, 8)
    scores = sampler.scores(logits, [SamplingParams(seed=1)], [[5, 6]])
    assert torch.equal(scores[0, 0], scores[0, 2])
    assert not torch.equal(scores[0, 0, 0], scores[0, 0, 1])


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=3),
        SamplingParams(seed=3, temperature=0.7, top_p=0.8),
        SamplingParams(seed=3, top_k=20),
        SamplingParams(seed=3, min_p=0.05),
    ],
    ids=str,
)
def test_a_draft_proposes_the_best_scores(params: SamplingParams, width: int) -> None:
    sampler = Sampler(500, torch.device("cpu"))
    logits = 4 * torch.randn(2, 3, 2, 500, generator=torch.Generator().manual_seed(0))
    requests, where = [params, SamplingParams(temperature=0.0)], [[5, 6], [9, 10]]
    found = sampler.rank(logits, requests, where, width)
    scores = torch.stack(
        [sampler.scores(logits[b : b + 1], [requests[b]], [where[b]])[0] for b in range(2)]
    )
    best = scores.topk(width)
    allowed = best.values > float("-inf")
    assert found.shape == best.indices.shape
    assert torch.equal(found[allowed], best.indices[allowed])
    ranked, chances = sampler.rank_with_chances(logits, requests, where, width, sharpness=1.5)
    assert torch.equal(ranked[allowed], found[allowed])
    for b, request in enumerate(requests):
        rivals = (1.5 * (request.temperature or 1.0) * scores[b]).topk(RIVALS).values
        expected, kept = rivals.log_softmax(-1)[..., :width], allowed[b]
        torch.testing.assert_close(chances[b][kept], expected[kept], atol=1e-4, rtol=0)
