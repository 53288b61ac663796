"""lisa and lisa-binarised: masks alone, rejection is not asked; the truth is the sum or the OR of polygons."""

from __future__ import annotations

from functools import partial

from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import Outcome
from uniresxx.scoring.protocols.base import PRECISION_KEYS, Areas, Protocol, areas, outcome, pad_by_image
from uniresxx.types import Expression

EPS = 1e-5  # added to the union of every IoU
# mIoU stays: M2SA prints what LISA calls gIoU as mIoU on RefCOCOm, where every expression has a target.
_UNDEFINED = (*PRECISION_KEYS, "N-acc", "T-acc")


def judge(expression: Expression, prediction: Prediction, *, summed: bool) -> Outcome:
    """Judge as LISA's `validate` does (train_ds.py and utils/utils.py, 3cb2d4301f1a).

    P is `mask`, null an empty one; the flag `rejected` is not asked. (IoU, I, U) = (I/(U + 1e-5), I, U), and
    IoU 1 where U is 0. LISA could not load gRefCOCO; its rule is applied to it all the same, so that an empty
    answer to an empty truth scores 1.

    With `summed` the truth is the sum of the polygons, as LISA's loader makes it (utils/dataset.py
    ValDataset): a pixel of two polygons is 2, which is in neither class of `intersectionAndUnionGPU`, so it
    drops out of G; the reader keeps such pixels in `source["overlap"]`. (Not followed: 257 polygons over one
    pixel wrap round to 1 there, 255 are ignored.) LISA sums IoU in float32 and divides by n + 1e-5 and
    U + 1e-10, below 1e-6 of the value from n = 11 on.
    """
    found = areas(expression.rle, prediction.rle)
    targeted = found.true > 0
    twice = expression.source.get("overlap") if summed else None
    if twice is not None:  # a subset of the truth
        common = masks.intersection_area(prediction.rle, twice) if prediction.rle is not None else 0
        found = Areas(found.predicted, found.true - masks.area(twice), found.common - common)
    iou = found.common / (found.union + EPS) if found.union else 1.0
    return outcome(expression, prediction, found, iou, targeted=targeted)


LISA = Protocol(
    name="lisa",
    summary="LISA's validate: masks only, rejection is not asked; empty answer to an empty truth is 1; "
    "IoU is I/(U + 1e-5); pixels that two polygons cover are no truth",
    judge=partial(judge, summed=True),
    undefined=_UNDEFINED,
    padded=pad_by_image,
    origin="dvlab-research/LISA:train_ds.py, utils/utils.py, utils/dataset.py at 3cb2d4301f1a",
)
LISA_BINARISED = Protocol(
    name="lisa-binarised",
    summary="lisa with the OR of the polygons as truth, as GSVA's validate on the RefCOCO family",
    judge=partial(judge, summed=False),
    undefined=_UNDEFINED,
    padded=pad_by_image,
    origin="LeapLabTHU/GSVA:solver.py validate, data/dataset.py at 618dc7957cd2",
)
