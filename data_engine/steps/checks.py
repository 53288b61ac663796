"""Last checks: that nothing answers to a negative, and that the words bring the mask back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from data_engine.components.table import detector_of, segmenter_of
from data_engine.model import Model
from data_engine.records import Item, Picture, rounded
from data_engine.roles import Detector
from data_engine.steps.base import Step, Work, shortfall
from uniresxx.prediction import Prediction
from uniresxx.scoring.protocols.base import areas
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Decoding, Granularity


@dataclass(frozen=True, kw_only=True)
class Absent(Step):
    """An open-vocabulary detector looks for what shall not be there.

    Args:
        max_score: a negative that a box answers with this score or more is rejected.
    """

    NAME: ClassVar[str] = "absent"
    VERSION: ClassVar[int] = 1
    model: Model
    max_score: float = 0.15

    def build(self) -> Work:
        """Load the detector."""
        return partial(_looked_for, self, detector_of(self.model))


def _looked_for(options: Absent, detector: Detector, picture: Picture, photo: np.ndarray) -> Picture:
    items = picture.kept(Granularity.NONE)
    found = detector.best_scores(photo, [item.text for item in items]) if items else []
    scores = {item.item_id: score for item, score in zip(items, found, strict=True)}

    def judged(item: Item) -> Item:
        if item.item_id not in scores:
            return item
        score = scores[item.item_id]
        why = (
            f"absent: something answers with {options.max_score:g} or more"
            if score >= options.max_score
            else None
        )
        return item.but(scores={"answered": rounded(score)}, rejected=why)

    return picture.with_items(map(judged, picture.items))


@dataclass(frozen=True, kw_only=True)
class RoundTrip(Step):
    """A Segmenter answers every expression.

    Args:
        model: a checkpoint of this project; no source: the model that comes with it.
        min_part, min_object, min_multi: IoU of its mask and the item's.
        check_absent: whether negatives that it answers with a mask are rejected.
    """

    NAME: ClassVar[str] = "round_trip"
    VERSION: ClassVar[int] = 1
    model: Model
    min_part: float = 0.5
    min_object: float = 0.6
    min_multi: float = 0.6
    check_absent: bool = True

    def build(self) -> Work:
        """Load the Segmenter."""
        return partial(_returned, self, segmenter_of(self.model))


def _returned(options: RoundTrip, segmenter: Segmenter, picture: Picture, photo: np.ndarray) -> Picture:
    items = picture.kept(*Granularity)
    if not items:
        return picture
    decoding = Decoding(template=segmenter.question_template)
    answers = segmenter.answer(segmenter.encode_images([photo]), [[item.text for item in items]], decoding)
    judged = {
        item.item_id: _judged(options, item, answer) for item, answer in zip(items, answers, strict=True)
    }
    return picture.with_items(judged.get(item.item_id, item) for item in picture.items)


def _judged(options: RoundTrip, item: Item, answer: Prediction) -> Item:
    if item.rle is None:
        answered = not answer.rejected and answer.rle is not None
        why = "round_trip: a mask for what is not there" if answered and options.check_absent else None
        return item.but(scores={"round_trip": float(not answered)}, rejected=why)
    iou = areas(item.rle, answer.rle).iou if answer.rle is not None and not answer.rejected else 0.0
    least = {
        Granularity.PART: options.min_part,
        Granularity.OBJECT: options.min_object,
        Granularity.MULTI: options.min_multi,
    }[item.granularity]
    return item.but(scores={"round_trip": rounded(iou)}, rejected=shortfall("round_trip", "IoU", iou, least))
