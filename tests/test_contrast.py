"""The contrast of masks of one picture: what it is, what moves it, and that training uses it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mllm.tokens import Vocabulary
from tests.test_mask_loss import CONFIG, batch_of, picture
from uniresxx.model.losses import contrast_sum
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES

IMAGES = torch.tensor([0, 0, 0, 1, 1])


def some(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(5, 8, 8, dtype=torch.bool)
    truth[0, :4], truth[1, 4:], truth[2, 2:6], truth[3, :, :2], truth[4, :, 5:] = (True,) * 5
    return torch.randn(5, 8, 8, generator=generator), truth


def by_hand(logits: np.ndarray, truth: np.ndarray, images: list[int]) -> float:
    """Pair by pair and pixel by pixel."""
    total = 0.0
    for i in range(len(logits)):
        worst = 0.0
        for j in range(len(logits)):
            if images[i] != images[j] or (truth[i] & truth[j]).any() or not truth[i].any():
                continue
            values = [
                math.log1p(math.exp(b - a))
                for a, b in zip(logits[i][truth[i]], logits[j][truth[i]], strict=True)
            ]
            worst = max(worst, sum(values) / len(values))
        total += worst
    return total


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_worst_confusion_of_each_mask(seed: int) -> None:
    logits, truth = some(seed)
    expected = by_hand(logits.double().numpy(), truth.numpy(), IMAGES.tolist())
    assert float(contrast_sum(logits, truth, IMAGES, 3)) == pytest.approx(expected, rel=1e-5)


def test_only_the_difference_of_two_masks_counts() -> None:
    """The same mask for both of a pair costs log 2 each, wherever it is; swapped answers cost more."""
    logits, truth = some()
    same = torch.randn(1, 8, 8).expand(2, 8, 8)
    pair = torch.tensor([0, 0])
    assert float(contrast_sum(same, truth[:2], pair, 2)) == pytest.approx(2 * math.log(2))
    assert float(contrast_sum(same + 5, truth[:2], pair, 2)) == pytest.approx(2 * math.log(2))
    right = torch.where(truth[:2], 4.0, -4.0)
    assert (
        float(contrast_sum(right, truth[:2], pair, 2))
        < 0.01
        < 10
        < float(contrast_sum(-right, truth[:2], pair, 2))
    )
    logits.requires_grad_(True)
    contrast_sum(logits, truth, IMAGES, 3).backward()
    assert logits.grad is not None and float(logits.grad.sum()) == pytest.approx(0, abs=1e-5)


def test_masks_that_overlap_other_pictures_and_empty_masks_do_not_count() -> None:
    logits, truth = some()
    assert float(contrast_sum(logits[2:4], truth[2:4], torch.tensor([0, 1]), 2)) == 0
    assert float(contrast_sum(logits[[0, 2]], truth[[0, 2]], torch.tensor([0, 0]), 2)) == 0
    assert float(contrast_sum(logits[:0], truth[:0], IMAGES[:0], 1)) == 0
    with_empty = torch.stack((truth[0], torch.zeros_like(truth[0])))
    assert float(contrast_sum(logits[:2], with_empty, torch.tensor([0, 0]), 2)) == pytest.approx(
        by_hand(logits[:2].double().numpy(), with_empty.numpy(), [0, 0]), rel=1e-5
    )


def test_a_model_trains_with_it_where_its_weight_is_not_0() -> None:
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)
    batch = batch_of([picture(0), picture(1)], vocabulary, CONFIG)
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        config = replace(CONFIG, loss=replace(CONFIG.loss, contrast=weight))
        model = UniRESPlusPlusModel(config, vocabulary)
        terms, counts = model.loss(model(batch), batch), model.counts(batch)
        assert ("contrast" in terms.sums) == ("contrast" in counts) == (weight > 0)
        assert torch.isfinite(terms.total(counts))
