"""The pictures of training and of the README show what the model answered, beside the truth or where it is right."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from tools.readme_pictures import HEADINGS, ROWS, TILE, drawn, is_right, rows_of
from train.assemble import SHOWN_TEXTS, overlay
from uniresxx.data.scenes import scene_record
from uniresxx.data.store.photos import photo_of
from uniresxx.imaging import masks
from uniresxx.imaging.marking import PALETTE
from uniresxx.prediction import Prediction
from uniresxx.predictor import Predictor
from uniresxx.types import EVALUATION_TEMPLATE, Expression, Granularity


class Told:
    """Answers with the true masks, moved to the right; texts in `rejected` are rejected."""

    decision_rule = "token"
    question_template = EVALUATION_TEMPLATE

    def __init__(self, records, moved=0, rejected=()):
        self.truth = {(photo_of(r).tobytes(), e.text): e.rle for r in records for e in r.expressions}
        self.moved, self.rejected = moved, rejected

    def encode_images(self, photos):
        return [photo.tobytes() for photo in photos]

    def answer(self, encoded, texts, decoding, on_text=None):
        found = []
        for photo, asked in zip(encoded, texts, strict=True):
            for text in (one if isinstance(one, str) else one.text for one in asked):
                rle = (
                    None if text in self.rejected else self.truth.get((photo, text))
                )  # half of a union is not known
                if rle is not None:
                    rle = masks.encode(np.roll(masks.decode(rle), self.moved, axis=1))
                found.append(Prediction(rle is None, rle, "[SEG]." if rle else "[REJ]."))
        return found


RECORDS = [scene_record("scenes_easy", "val", number) for number in range(8)]


def count(picture, colour):
    return int((np.asarray(picture) == colour).all(axis=2).sum())


def test_training_shows_truth_and_answer_of_each_expression():
    right, none = (
        overlay(Told(RECORDS, rejected=rejected), RECORDS[:2], 7)
        for rejected in ((), {e.text for r in RECORDS for e in r.expressions})
    )
    assert right.width == none.width == 4 * (2 * TILE[1] + 4) + 5 * 16 and SHOWN_TEXTS == 4
    assert count(right, PALETTE[3]) == count(none, PALETTE[3]) > 500  # the truth
    assert np.asarray(right).mean() < np.asarray(none).mean() - 10  # nothing found: the photo is not darkened


def test_the_readme_shows_right_answers_of_every_kind():
    rows = list(islice(rows_of(Predictor(Told(RECORDS)), iter(RECORDS)), ROWS))
    assert len(rows) == ROWS
    for record, row in rows:
        assert [expression.granularity for expression, _ in row] == list(HEADINGS)
        assert all(expression in record.expressions for expression, _ in row)
    assert len({row[1][0].text.split()[-1] for _, row in rows}) == ROWS
    picture = drawn(rows)
    assert picture.width == 4 * TILE[1] + 5 * 18 and picture.height > ROWS * TILE[0]


@pytest.mark.parametrize(
    "wrong", [{"moved": 9}, {"rejected": {e.text for r in RECORDS for e in r.expressions}}]
)
def test_wrong_answers_are_not_shown(wrong):
    assert not list(rows_of(Predictor(Told(RECORDS, **wrong)), iter(RECORDS)))


def test_right_is_a_mask_close_to_the_truth_or_a_rejection_of_what_is_absent():
    rle = masks.encode(np.eye(8, dtype=bool))
    there, absent = (
        Expression("a", "a", Granularity.OBJECT, rle),
        Expression("b", "b", Granularity.NONE, None),
    )
    full, none, empty = (
        Prediction(False, rle, ""),
        Prediction(True, None, ""),
        Prediction(False, masks.empty(8, 8), ""),
    )
    assert is_right(there, full) and is_right(absent, none)
    assert not is_right(there, none) and not is_right(there, empty) and not is_right(absent, full)
