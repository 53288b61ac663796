"""cris and cris-validate: mean IoU over sentences, all of them or the first of each referent."""

from __future__ import annotations

from collections.abc import Sequence

from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import Outcome
from uniresxx.scoring.protocols.base import Protocol, areas, outcome, padding_of
from uniresxx.types import Expression, ImageRecord

EPS = 1e-6  # added to the union of every IoU
# torch.arange(0.5, 1.0, 0.1) in float32, against which IoU is compared in float64: an IoU of exactly 0.7 or
# 0.9 passes where the union is large enough for EPS not to matter, one of 0.5, 0.6 or 0.8 never does.
THRESHOLDS_32 = (0.5, 0.6000000238418579, 0.699999988079071, 0.800000011920929, 0.8999999761581421)
_REFUSES = ("grefcoco", "psalm_grefcoco", "mini_real")  # all that hold gRefCOCO
_REFERENT = ("ref_id", "segment_id", "ann_id")
_UNDEFINED = ("gIoU", "cIoU", "N-acc", "T-acc")


def judge(expression: Expression, prediction: Prediction) -> Outcome:
    """Judge as CRIS's `inference` and `validate` do (engine/engine.py, e596332f8f59), given binary masks.

    IoU = I/(U + 1e-6) in float64, Pr@X counts IoU > X with X in float32; every pixel above 0 of the truth is
    foreground, also where polygons overlap. P is `mask`, null an empty one; CRIS knows no rejection, so the
    flag is not asked (our choice).
    """
    found = areas(expression.rle, prediction.rle)
    iou = found.common / (found.union + EPS)
    return outcome(expression, prediction, found, iou, above=tuple(iou > x for x in THRESHOLDS_32))


def first_sentences(record: ImageRecord) -> Sequence[Expression]:
    """The first sentence of each referent, as CRIS's data set gives in mode `val` (utils/dataset.py).

    A referent is a `ref_id`, a `segment_id` (its own lists) or else an `ann_id` of one data set; an expression
    without any of them stands for itself.
    """
    first: dict[tuple[str, str], Expression] = {}
    for expression in record.expressions:
        place, _, last = expression.expression_id.rpartition("/")
        known = (
            f"{key} {expression.source[key]}" for key in _REFERENT if expression.source.get(key) is not None
        )
        first.setdefault((place, next(known, last)), expression)
    return list(first.values())


def pad_by_sentence(records: Sequence[ImageRecord], world_size: int) -> Sequence[str]:
    """Padding of CRIS's `validate`, whose items are referents with one sentence each.

    Its order is that of the annotation file; records come per picture, so where the file scatters the
    referents of one picture the padded ones may be others.
    """
    items = [e.expression_id for record in records for e in first_sentences(record)]
    return [items[index] for index in padding_of(len(items), world_size)]


CRIS = Protocol(
    name="cris",
    summary="CRIS's inference: mean of I/(U + 1e-6) over all sentences, Pr@X with float32 thresholds; no "
    "cIoU and no rejection",
    judge=judge,
    refuses=_REFUSES,
    undefined=_UNDEFINED,
    origin="DerrickWang005/CRIS.pytorch:engine/engine.py inference at e596332f8f59",
)
CRIS_VALIDATE = Protocol(
    name="cris-validate",
    summary="as cris, over the first sentence of each referent only",
    judge=judge,
    counted=first_sentences,
    refuses=_REFUSES,
    undefined=_UNDEFINED,
    padded=pad_by_sentence,
    origin="DerrickWang005/CRIS.pytorch:engine/engine.py validate, utils/dataset.py at e596332f8f59",
)
