"""gsva: a rejected target keeps the score of the mask it would have got."""

from __future__ import annotations

from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import Outcome
from uniresxx.scoring.protocols.base import PRECISION_KEYS, Protocol, areas, outcome, pad_by_image
from uniresxx.types import Expression

EPS = 1e-8  # added to the union of every IoU


def judge(expression: Expression, prediction: Prediction) -> Outcome:
    """Judge as GSVA's `eval_gres` does (solver.py, 618dc7957cd2).

    GSVA turns each generated [REJ] into [SEG] before it asks for masks, so every answer has one: here
    `mask_if_forced`, else `mask`, else an empty one. (IoU, I, U): no target, rejected 1, 0, 0; no target,
    answered 0, 0, |P| (GSVA leaves |P| out on Ref-ZOM only, which is no benchmark here); target, rejected or
    not, I/(U + 1e-8), I, U. The flag enters N-acc and T-acc alone. The truth is the OR of all polygons: GSVA's
    loader (data/dataset.py ValDataset) sums them and then takes what is not 0. GSVA sums IoU in float32 and
    divides by n + 1e-5 and U + 1e-10, below 1e-6 of the value from n = 11 on.
    """
    forced = prediction.mask_if_forced
    found = areas(expression.rle, forced if forced is not None else prediction.rle)
    if found.true:
        iou, union = found.common / (found.union + EPS), found.union
    else:
        iou, union = float(prediction.rejected), 0 if prediction.rejected else found.predicted
    return outcome(expression, prediction, found, iou, union=union)


GSVA = Protocol(
    name="gsva",
    summary="GSVA's eval_gres: a rejected target is scored with the mask a forced [SEG] gives, else the mask "
    "it carries; IoU is I/(U + 1e-8)",
    judge=judge,
    undefined=("mIoU", *PRECISION_KEYS),
    padded=pad_by_image,
    origin="LeapLabTHU/GSVA:solver.py at 618dc7957cd2",
)
