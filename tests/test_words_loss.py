"""The words that the state before [SEG] must tell: which they are, and that training uses them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mllm.tokens import Vocabulary
from tests.test_mask_loss import CONFIG, batch_of, picture
from uniresxx.model.config import LossConfig
from uniresxx.model.criterion import words_sum
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES

VOCABULARY = Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)
BATCH = batch_of([picture(0), picture(1)], VOCABULARY, CONFIG)


def bag_of(number: int) -> set[int]:
    """Tokens of an expression's branch up to its [SEG], looked up one by one."""
    image, place = int(BATCH.image_of_expr_E[number]), int(BATCH.seg_position_E[number])
    branch = int(BATCH.branch_BT[image, place])
    return {
        int(BATCH.token_ids_BT[image, t]) for t in range(place) if int(BATCH.branch_BT[image, t]) == branch
    }


def test_the_words_are_those_of_the_question_before_the_mask() -> None:
    size = CONFIG.mllm.token_count
    sure = torch.full((len(BATCH.seg_position_E), size), -30.0)
    expected = 0.0
    for number in range(len(sure)):
        bag = bag_of(number)
        assert len(bag) > 3
        assert set(VOCABULARY.encode(" square")) & bag or set(VOCABULARY.encode(" squares")) & bag
        sure[number, sorted(bag)] = 30.0
        truth = torch.zeros(size).index_fill(0, torch.tensor(sorted(bag)), 1.0)
        expected += float(F.binary_cross_entropy_with_logits(torch.zeros(size), truth, reduction="sum"))
    assert float(words_sum(sure, BATCH)) < 1e-6
    assert float(words_sum(torch.zeros_like(sure), BATCH)) == pytest.approx(expected)
    assert float(words_sum(-sure, BATCH)) > 1000


def test_a_model_has_the_head_and_the_term_where_the_weight_is_not_0() -> None:
    for weight in (0.0, 0.1):
        torch.manual_seed(0)
        model = UniRESPlusPlusModel(replace(CONFIG, loss=replace(CONFIG.loss, words=weight)), VOCABULARY)
        terms, counts = model.loss(model(BATCH), BATCH), model.counts(BATCH)
        there = weight > 0
        assert ("words" in terms.sums) == ("words" in counts) == (model.words is not None) == there
        terms.total(counts).backward()
        if model.words is not None:
            assert (
                counts["words"] == len(BATCH.seg_position_E)
                and float(model.words.weight.grad.abs().sum()) > 0
            )


def test_plain_answers_have_neither_contrast_nor_words() -> None:
    alone = replace(LossConfig(), contrast=1.0, words=1.0).text_only()
    assert alone.contrast == alone.words == 0 and not alone.teaches_masks
