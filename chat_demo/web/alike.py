"""Whether two answers to one question say the same."""

from __future__ import annotations

from uniresxx.prediction import Prediction
from uniresxx.scoring.protocols.base import areas
from uniresxx.types import RLE

ALIKE = 0.8  # IoU from which two masks count as the same answer


def alike(first: Prediction, second: Prediction) -> bool:
    """Both reject, or their masks have an IoU of at least ALIKE."""
    shared = iou_of(first, second)
    return shared is None or shared >= ALIKE


def iou_of(first: Prediction, second: Prediction) -> float | None:
    """IoU of two answers' masks, 0 where only one has a mask, None where neither has."""
    one, two = mask_of(first), mask_of(second)
    if one is None or two is None:
        return None if one is two else 0.0
    found = areas(one, two)
    return found.iou if found.union else None


def mask_of(prediction: Prediction) -> RLE | None:
    """The mask of an answer that is not rejected."""
    return None if prediction.rejected else prediction.rle
