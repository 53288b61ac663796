"""rela, rela-480 and empty_is_none: gRefCOCO's own evaluator, at two sizes, and with an empty mask as rejection."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import THRESHOLDS, Outcome
from uniresxx.scoring.protocols.base import Protocol, areas, has_target, outcome
from uniresxx.types import RLE, Expression

SQUASHED = 480  # pixels of both sides, whatever the shape of the photo
_COUNTED_FROM = 0.7  # Pr@X exists for X = 0.7, 0.8, 0.9 only
_ORIGIN = "henghuiding/ReLA:gres_model/evaluation/refer_evaluation.py at 3ca955198da8"
_UNDEFINED = ("mIoU", "Pr@0.5", "Pr@0.6")


def judge(expression: Expression, prediction: Prediction, *, squash: bool = False) -> Outcome:
    """Judge as ReLA's `ReferEvaluator.evaluate` does (3ca955198da8).

    (IoU, I, U) with P the mask that the answer carries, also a rejected one: no target, rejected 1, 0, 0; no
    target, answered 0, 0, |P|; target, rejected 0, 0, |P or G|; target, answered I/U, I, U. IoU is 0 where U
    is 0. Pr@X counts IoU >= X.

    With `squash` both masks are compared at 480 x 480. The truth's polygons are scaled and drawn there, as ReLA's
    loader does. A truth without polygons, and the prediction, are resized to the nearest pixel, as detectron2's
    `ResizeTransform.apply_segmentation` does. Whether there is a target is decided at the photo's size, because a
    small truth may have no pixel left.
    """
    truth, mask = expression.rle, prediction.rle
    if squash:
        truth, mask = squashed_truth(expression), squashed(mask)
    targeted, rejected, found = has_target(expression), prediction.rejected, areas(truth, mask)
    common = 0 if rejected else found.common
    union = 0 if rejected and not targeted else found.union
    iou = common / max(union, 1) if targeted else float(rejected)
    above = tuple(x >= _COUNTED_FROM and iou >= x for x in THRESHOLDS)
    return outcome(
        expression, prediction, found, iou, targeted=targeted, intersection=common, union=union, above=above
    )


def judge_empty_is_none(expression: Expression, prediction: Prediction) -> Outcome:
    """Judge as `judge`, but an answer is rejected if and only if its mask is null or has no pixel.

    The rule of the survey arXiv 2508.00265 and of the gRefCOCO paper's text (arXiv 2306.00968); no code of it
    is public, so counting is ReLA's. Our choice: the flag `rejected` is not asked at all.
    """
    rejected = prediction.rle is None or masks.area(prediction.rle) == 0
    return judge(expression, replace(prediction, rejected=rejected))


def squashed_truth(expression: Expression) -> RLE | None:
    """The truth at 480 x 480: drawn from its polygons, resized where there are none."""
    if expression.rle is None or expression.polygons is None:
        return squashed(expression.rle)
    height, width = expression.rle["size"]
    scale = np.array([SQUASHED / width, SQUASHED / height])
    scaled = [(np.reshape(polygon, (-1, 2)) * scale).ravel() for polygon in expression.polygons]
    return masks.from_polygons(scaled, SQUASHED, SQUASHED)


def squashed(rle: RLE | None) -> RLE | None:
    """A mask at 480 x 480, each pixel the nearest of the original, as Pillow finds it."""
    if rle is None:
        return None
    picture = Image.fromarray(masks.decode(rle).astype(np.uint8))
    return masks.encode(np.asarray(picture.resize((SQUASHED, SQUASHED), Image.Resampling.NEAREST)))


RELA = Protocol(
    name="rela",
    summary="ReLA's evaluator at original size: a rejected target scores 0 but its union keeps the pixels of "
    "the mask it carries; Pr@X counts IoU >= X, for 0.7, 0.8, 0.9",
    judge=judge,
    undefined=_UNDEFINED,
    origin=_ORIGIN,
)
RELA_480 = Protocol(
    name="rela-480",
    summary="rela at 480 x 480: the truth is drawn there from its polygons, as ReLA's loader does; predictions, "
    "and truth that is known as a mask only, are resized to the nearest pixel",
    judge=partial(judge, squash=True),
    undefined=_UNDEFINED,
    draws_truth=True,
    origin=_ORIGIN,
)
EMPTY_IS_NONE = Protocol(
    name="empty_is_none",
    summary="as rela, but rejected means exactly: no foreground pixel in the mask",
    judge=judge_empty_is_none,
    undefined=_UNDEFINED,
    origin="arXiv 2508.00265 (text); counting as henghuiding/ReLA at 3ca955198da8",
)
