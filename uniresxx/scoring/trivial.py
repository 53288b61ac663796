"""Trivial answers, printed beside every model: what a score is worth shows beside what needs no model."""

from __future__ import annotations

import numpy as np

from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.types import RLE, Granularity, ImageRecord

TRIVIAL_NAMES = {
    "all_objects": "every object of the picture at once, whatever is asked; never rejects",
    "never_reject": "the model's own masks, but [REJ] is never accepted",
    "always_reject": "says that nothing is there, whatever is asked",
}
ALWAYS_REJECT = Prediction(rejected=True, rle=None, text=None)


def all_objects(record: ImageRecord) -> RLE:
    """All objects of an image as one mask at its size.

    Scenes have their objects pixel by pixel. Elsewhere it is the union of the truth masks of the object and multi
    expressions, or of all truth masks where there are none of these.
    """
    size = (record.height, record.width)
    if record.dense is not None and record.dense.shape[:2] == size:
        return masks.encode(np.asarray(record.dense[..., 0] > 0))
    truths = [e for e in record.expressions if e.rle is not None]
    whole = [e for e in truths if e.granularity in (Granularity.OBJECT, Granularity.MULTI)]
    return masks.union([e.rle for e in whole or truths if e.rle is not None], size)


def never_reject(given: Prediction) -> Prediction:
    """The given answer; where it rejects, the forced mask instead (else the mask it carries, else empty)."""
    mask = (given.mask_if_forced or given.rle) if given.rejected else given.rle
    return Prediction(rejected=False, rle=mask, text=None)
