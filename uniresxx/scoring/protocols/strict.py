"""strict: our own protocol, nothing lenient and nothing dropped."""

from __future__ import annotations

from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import THRESHOLDS, Outcome
from uniresxx.scoring.protocols.base import Protocol, areas, outcome
from uniresxx.types import Expression


def judge(expression: Expression, prediction: Prediction) -> Outcome:
    """Judge one answer at the photo's size; an answer without a mask is an empty mask.

    (IoU, I, U): no target, rejected 1, 0, 0; no target, answered 0, 0, |P|; target, rejected 0, 0, |G|;
    target, answered I/U, I, U.
    """
    found = areas(expression.rle, None if prediction.rejected else prediction.rle)
    # A targeted expression always has union > 0.
    iou = found.common / found.union if found.true else float(prediction.rejected)
    # Exact although in floats: I/U rounds to the literal only when it equals it (U < 2^50).
    return outcome(expression, prediction, found, iou, above=tuple(iou > x for x in THRESHOLDS))


STRICT = Protocol(
    name="strict",
    summary="original size, every expression once, integer sums; a rejected target scores 0, "
    "a mask where nothing is scores 0 and adds its pixels to the union; Pr@X counts IoU > X over targets",
    judge=judge,
    has_more=True,
)
