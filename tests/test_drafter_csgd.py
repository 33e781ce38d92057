"""CSGD: what is aligned with what, which positions are revealed, and what the loss counts."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drafter import distillation
from drafter.config import DrafterConfig
from drafter.csgd import (
    Lesson,
    choose_revealed,
    csgd_losses,
    is_whole,
    lesson_losses,
    make_lesson,
    told_tokens,
)
from drafter.distillation import DistillationLoss, LossWeights, distillation_losses, token_loss
from drafter.model import FalconHead, TargetParts, block_mask

VOCABULARY, HIDDEN = 11, 8


@pytest.fixture
def parts() -> TargetParts:
    torch.manual_seed(0)
    table = torch.randn(VOCABULARY, HIDDEN)
    return TargetParts(nn.Embedding.from_pretrained(table), lambda rows: F.linear(rows, table))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_lesson(parts: TargetParts, block_size: int, batch: int = 3, length: int = 20) -> Lesson:
    ids = torch.randint(VOCABULARY, (batch, length), generator=seeded(1))
    features = torch.randn(batch, length, HIDDEN, generator=seeded(2))
    is_answer = (torch.arange(length) >= 6).expand(batch, length)
    return make_lesson(ids, features, is_answer, block_size, parts)


def test_block_mask_is_the_picture_in_its_docstring() -> None:
    def draw(mask: Tensor) -> list[str]:
        return ["".join("x" if seen else "." for seen in row) for row in mask.tolist()]

    assert draw(block_mask(4, 2, 0, None)) == ["xx..", "xx..", "xxxx", "xxxx"]
    assert draw(block_mask(4, 2, 1, None)) == ["x...", "xxx.", "xxx.", "xxxx"]
    assert draw(block_mask(4, 2, 0, 2)) == ["xx..", "xx..", ".xxx", "..xx"]


def test_lesson_is_aligned_as_in_its_docstring(parts: TargetParts) -> None:
    ids, is_answer = torch.arange(5)[None], torch.tensor([[False, False, False, False, True]])
    features = torch.arange(5.0)[None, :, None].expand(1, 5, HIDDEN)
    lesson = make_lesson(ids, features, is_answer, 2, parts)
    assert lesson.tokens.tolist() == [[1, 2]]
    assert lesson.told.tolist() == [[[2, 1], [3, 2]]]
    assert lesson.features[0, :, 0].tolist() == [0, 1]
    assert lesson.answer_features[0, :, 0].tolist() == [2, 3]
    assert lesson.answer_tokens.tolist() == [[3, 4]]
    assert lesson.picks.tolist() == parts.head(features[:, 2:4]).argmax(-1).tolist()
    assert lesson.counted.tolist() == [[False, True]]


def test_coupled_slots_are_told_the_tokens_before_what_they_are_to_say() -> None:
    ids = torch.arange(7)[None]
    told = [[3, 2, 1], [4, 3, 2], [5, 4, 3]]  # to say 4, 5, 6
    assert told_tokens(ids, 3).tolist() == [told]


@pytest.mark.parametrize("block_size", [2, 3, 4])
def test_revealed_positions_are_prefixes_of_whole_blocks_within_the_budget(block_size: int) -> None:
    counted = (torch.arange(41) >= 7).repeat(5, 1)
    counted[1, 30:] = False
    for seed in range(20):
        offset = seed % block_size
        budget = torch.tensor([0, 3, 5, 9, 1000])
        revealed = choose_revealed(budget, counted, block_size, offset, seeded(seed))
        assert (revealed.sum(1) <= budget).all()
        assert revealed[3].sum() > 0
        slot = (torch.arange(41) + offset) % block_size
        assert not revealed[:, slot == block_size - 1].any()
        for row, position in revealed.nonzero().tolist():
            block = range(
                position - int(slot[position]), position + block_size - int(slot[position])
            )
            assert all(0 <= other < 41 and counted[row, other] for other in block)
            assert all(revealed[row, other] for other in block if other < position)


def test_the_budget_is_spent_where_there_are_blocks_enough() -> None:
    counted = torch.ones(2, 40, dtype=torch.bool)
    revealed = choose_revealed(torch.tensor([4, 7]), counted, 2, 0, seeded())
    assert revealed.sum(1).tolist() == [4, 7]


def test_loss_ignores_positions_that_are_not_counted(parts: TargetParts) -> None:
    lesson = random_lesson(parts, 2)
    predicted = torch.randn(*lesson.features.shape, generator=seeded(3))
    counted = lesson.counted.clone()
    counted[:, ::2] = False
    before = lesson_losses([predicted] * 2, lesson, [counted] * 2, parts, LossWeights())
    predicted[~counted] = 1e4
    after = lesson_losses([predicted] * 2, lesson, [counted] * 2, parts, LossWeights())
    assert before == after


def test_all_alignments_count_but_for_blocks_that_the_rows_end_cuts(parts: TargetParts) -> None:
    assert is_whole(5, 2, 0).tolist() == [True] * 4 + [False]
    assert is_whole(5, 2, 1).tolist() == [True] * 5
    lesson = random_lesson(parts, 2, length=8)  # five positions, all of answers but the first
    predictions = [torch.randn(3, 5, HIDDEN, generator=seeded(seed)) for seed in (3, 4)]
    found = lesson_losses(predictions, lesson, [lesson.counted] * 2, parts, LossWeights())
    wanted = [lesson.counted & is_whole(5, 2, offset) for offset in (0, 1)]
    assert wanted[0].sum() < wanted[1].sum()
    expected = distillation_losses(
        torch.cat([own[which] for own, which in zip(predictions, wanted, strict=True)]),
        torch.cat([lesson.answer_features[which] for which in wanted]),
        torch.cat([lesson.picks[which] for which in wanted]),
        parts,
        LossWeights(),
    )
    assert found == expected


def test_a_perfect_prediction_costs_only_the_hard_part(parts: TargetParts) -> None:
    lesson = random_lesson(parts, 2)
    losses = lesson_losses(
        [lesson.answer_features], lesson, [lesson.counted], parts, LossWeights(hard=0.0)
    )
    assert losses.total.item() == pytest.approx(0, abs=1e-6)


def test_revealed_positions_read_the_answer_and_cost_nothing(parts: TargetParts) -> None:
    head = SpyHead(DrafterConfig(hidden_size=HIDDEN, vocab_size=VOCABULARY, num_heads=2))
    lesson = random_lesson(parts, 2)
    csgd_losses(head, parts, lesson, 1.0, LossWeights(), seeded(), noise=0.0)
    assert head.offsets_seen == [0, 1, 0, 1]  # guesses of what is read once, then what is learned
    guess, *shown_at_each = head.features_seen
    assert torch.equal(guess, lesson.features)
    for shown in shown_at_each:
        is_changed = (shown != guess).any(-1)
        assert is_changed.any()
        assert torch.equal(shown[is_changed], lesson.answer_features[is_changed])
        assert lesson.counted[is_changed].all()


def test_without_glancing_all_alignments_come_of_one_reading(parts: TargetParts) -> None:
    head = SpyHead(DrafterConfig(hidden_size=HIDDEN, vocab_size=VOCABULARY, num_heads=2))
    csgd_losses(head, parts, random_lesson(parts, 2), 0.0, LossWeights(), seeded())
    assert len(head.features_seen) == 1
    assert head.offsets_seen == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_and_its_gradient_are_those_of_its_definition(dtype: torch.dtype) -> None:
    draft = (4 * torch.randn(6, VOCABULARY, generator=seeded(1))).to(dtype).requires_grad_()
    target = (4 * torch.randn(6, VOCABULARY, generator=seeded(2))).to(dtype)
    picks = target.argmax(-1)
    logs = F.log_softmax(draft.float(), -1)
    soft = F.kl_div(logs, F.log_softmax(target.float(), -1), reduction="sum", log_target=True)
    expected = 0.7 * soft + 0.2 * F.nll_loss(logs, picks, reduction="sum")
    found = DistillationLoss.apply(draft, target, picks, 0.7, 0.2)
    torch.testing.assert_close(found, expected)
    (wanted,) = torch.autograd.grad(expected / 7, draft)
    (gradient,) = torch.autograd.grad(found / 7, draft)
    torch.testing.assert_close(gradient, wanted)


def test_many_rows_cost_what_they_cost_together(
    parts: TargetParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(10, HIDDEN, generator=seeded(1), requires_grad=True)
    answers = torch.randn(10, HIDDEN, generator=seeded(2))
    picks = parts.head(answers).argmax(-1)

    def cost() -> tuple[Tensor, Tensor]:
        loss = token_loss(parts.head, rows, answers, picks, parts, LossWeights())
        return loss.detach(), torch.autograd.grad(loss, rows)[0]

    together = cost()
    monkeypatch.setattr(distillation, "LOGITS_HELD", 4 * VOCABULARY)
    torch.testing.assert_close(cost(), together)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("mixer", ["lstm", "linear"])
def test_every_weight_gets_a_gradient(
    parts: TargetParts, mixer: Literal["lstm", "linear"], coupled: bool
) -> None:
    config = DrafterConfig(
        hidden_size=HIDDEN,
        vocab_size=VOCABULARY,
        num_heads=2,
        mixer=mixer,
        block_size=3,
        coupled=coupled,
    )
    head = FalconHead(config)
    losses = csgd_losses(head, parts, random_lesson(parts, 3), 0.4, LossWeights(), seeded())
    losses.total.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in head.parameters())


class SpyHead(FalconHead):
    """Remembers the features of each reading, and the offsets of what was predicted from them."""

    def __init__(self, config: DrafterConfig) -> None:
        super().__init__(config)
        self.features_seen: list[Tensor] = []
        self.offsets_seen: list[int] = []

    def read(self, embeddings: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        self.features_seen.append(features)
        return super().read(embeddings, features)

    def predict(
        self, read: tuple[Tensor, Tensor], offset: int, told: Tensor | None = None
    ) -> Tensor:
        self.offsets_seen.append(offset)
        return super().predict(read, offset, told)
