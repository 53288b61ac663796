"""Which things an answer found: cgF1, pmF1 and IL_MCC of SA-Co, and COCO's mask AP, each expression on its own.

An expression is what those call an image. Its true instances are known where it has none, where it means one object,
and where the data set has each of several alone. A part is one instance: all its pieces together, on both sides.
Several objects of which only the union is known are left out. The instances of an answer are those it lists, else its
mask as one; of a rejected answer, none. An instance that is listed counts whatever its score, because the answer
unites it (SA-Co drops those below 0.5 first).

Shapes: D instances found, G true ones, T thresholds, R points of recall.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from uniresxx.prediction import Prediction
from uniresxx.scoring.protocols.base import areas, has_target
from uniresxx.types import RLE, Expression, Granularity

THRESHOLDS_T = np.linspace(0.5, 0.95, 10)  # COCO's, to the last bit
RECALLS_R = np.linspace(0.0, 1.0, 101)
MOST = 100  # instances of an answer that AP looks at, best first
_BITS_T = np.arange(len(THRESHOLDS_T))
_EPS, _EPS_MCC = 1e-4, 1e-6  # SA-Co adds them below the line

Found = tuple[RLE | None, float]  # a mask (None: without a pixel), and its score


class Pairs(NamedTuple):
    """The instances found in one answer against the true ones."""

    ious_DG: np.ndarray
    scores_D: np.ndarray


def pairs_of(expression: Expression, given: Prediction) -> Pairs | None:
    """IoU of every instance found with every true one; None where the true ones are not known.

    An instance without a score has 1.
    """
    true = _true_instances(expression)
    if true is None:
        return None
    found = _found_instances(expression, given)
    ious = [areas(rle, mask).iou for mask, _ in found for rle in true]
    return Pairs(np.reshape(np.array(ious), (len(found), len(true))), np.array([s for _, s in found]))


def _true_instances(expression: Expression) -> list[RLE] | None:
    if not has_target(expression):
        return []
    if expression.instances is not None:
        return list(expression.instances)
    alone = expression.granularity in (Granularity.PART, Granularity.OBJECT)
    return [expression.rle] if alone and expression.rle is not None else None


def _found_instances(expression: Expression, given: Prediction) -> list[Found]:
    if given.rejected:
        return []
    united = expression.granularity is Granularity.PART and expression.instances is None
    if given.instances and not united:
        return [(item.rle, 1.0 if item.score is None else item.score) for item in given.instances]
    return [(given.rle, 1.0 if given.score is None else given.score)]


@dataclass(slots=True)
class InstanceCounts:
    """Sums for pmF1 and IL_MCC: how many of the expressions with something to find, and of the others, are right."""

    true_T: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS_T), np.int64))
    wrong_T: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS_T), np.int64))
    missed_T: np.ndarray = field(default_factory=lambda: np.zeros(len(THRESHOLDS_T), np.int64))
    answered: int = 0  # of those with something to find
    rejected: int = 0
    invented: int = 0  # answered where nothing is
    refused: int = 0  # rejected where nothing is

    def add(self, pairs: Pairs) -> None:
        """Count one expression. Instances are paired so that the sum of their IoUs is largest."""
        found, true = pairs.ious_DG.shape
        self.answered += bool(found and true)
        self.rejected += bool(true and not found)
        self.invented += bool(found and not true)
        self.refused += not found and not true
        if not true:  # pmF1 is over expressions with something to find
            return
        right_T = (_matched(pairs.ious_DG)[:, None] >= THRESHOLDS_T).sum(axis=0)
        self.true_T += right_T
        self.wrong_T += found - right_T
        self.missed_T += true - right_T

    def scores(self) -> dict[str, float | None]:
        """`cgF1`, `pmF1` and `IL_MCC` in percent.

        As facebookresearch/sam3:sam3/eval/cgf1_eval.py at 99d02f28c8d3, whose numbers are hundredths of these. pmF1
        is its positive_micro_F1, the mean over IoU thresholds 0.5 to 0.95; cgF1 is pmF1 x IL_MCC / 100. Ours: where
        the public code gives 0 because every expression has something to find, or none has, they are None.
        """
        positive, negative = self.answered + self.rejected, self.invented + self.refused
        precision_T = self.true_T / (self.true_T + self.wrong_T + _EPS)
        recall_T = self.true_T / (self.true_T + self.missed_T + _EPS)
        f1_T = 2 * precision_T * recall_T / (precision_T + recall_T + _EPS)
        tp, fn, fp, tn = self.answered, self.rejected, self.invented, self.refused
        sides = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
        correlation = float(tp * tn - fp * fn) / (sides**0.5 + _EPS_MCC)
        defined = bool(positive and negative)
        return {
            "cgF1": 100 * float(np.mean(f1_T * correlation)) if defined else None,
            "pmF1": 100 * float(np.mean(f1_T)) if positive else None,
            "IL_MCC": 100 * correlation if defined else None,
        }


def _matched(ious_DG: np.ndarray) -> np.ndarray:
    """IoU of each pair, of the pairing with the largest sum."""
    if min(ious_DG.shape) < 2:
        return ious_DG.max(axis=None, keepdims=True).ravel() if ious_DG.size else np.zeros(0)
    from scipy.optimize import linear_sum_assignment  # slow to import, and most answers do not need it

    return np.asarray(ious_DG[linear_sum_assignment(ious_DG, maximize=True)])


@dataclass(slots=True)
class AveragePrecision:
    """Mask AP as pycocotools' COCOeval counts it: one class, all areas, 100 detections, no crowds.

    Of each instance found its score is kept and at which thresholds it is right, no mask. Equal scores are taken in
    the order of the benchmark.
    """

    true: int = 0
    images_D: array[int] = field(default_factory=lambda: array("l"))
    places_D: array[int] = field(default_factory=lambda: array("l"))
    scores_D: array[float] = field(default_factory=lambda: array("d"))
    right_D: array[int] = field(default_factory=lambda: array("l"))  # bit t: right at threshold t

    def add(self, place: tuple[int, int], pairs: Pairs) -> None:
        """Count one expression; `place` is the number of its image, and its own within the image."""
        self.true += pairs.ious_DG.shape[1]
        order_D = np.argsort(-pairs.scores_D, kind="stable")[:MOST]
        for values_D, value in ((self.images_D, place[0]), (self.places_D, place[1])):
            values_D.extend([value] * len(order_D))
        self.scores_D.extend(pairs.scores_D[order_D].tolist())
        self.right_D.extend((_greedy(pairs.ious_DG[order_D]) << _BITS_T[:, None]).sum(axis=0).tolist())

    def scores(self) -> dict[str, float | None]:
        """`AP` (mean over IoU 0.5 to 0.95), `AP50` and `AP75` in percent; None where nothing is to be found."""
        if not self.true:
            return {"AP": None, "AP50": None, "AP75": None}
        order_D = np.lexsort((np.array(self.places_D), np.array(self.images_D), -np.array(self.scores_D)))
        right_TD = (np.array(self.right_D, dtype=np.int64)[order_D] >> _BITS_T[:, None]) & 1
        precisions_TR = np.stack([_precisions(right_D, self.true) for right_D in right_TD])
        of = {"AP": precisions_TR, "AP50": precisions_TR[0], "AP75": precisions_TR[5]}
        return {key: 100 * float(values.mean()) for key, values in of.items()}


def _greedy(ious_DG: np.ndarray) -> np.ndarray:
    """Which instances are right at each threshold, bool (T, D): best score first, each takes the nearest free one."""
    right_TD = np.zeros((len(THRESHOLDS_T), len(ious_DG)), dtype=bool)
    if not ious_DG.shape[1]:
        return right_TD
    if len(ious_DG) == 1:
        return ious_DG.max() >= THRESHOLDS_T[:, None]
    for t, threshold in enumerate(THRESHOLDS_T):
        free_DG = ious_DG.copy()
        for d, ious_G in enumerate(free_DG):
            nearest = ious_G.size - 1 - int(ious_G[::-1].argmax())  # of equal ones COCO takes the last
            if ious_G[nearest] >= threshold:
                right_TD[t, d] = True
                free_DG[:, nearest] = -1.0
    return right_TD


def _precisions(right_D: np.ndarray, true: int) -> np.ndarray:
    """Precision at each point of recall (R): the best at that recall or above, 0 where it was not reached."""
    hits_D = np.cumsum(right_D)
    precision_D = hits_D / np.arange(1, len(right_D) + 1)
    best_D = np.maximum.accumulate(precision_D[::-1])[::-1]
    place_R = np.searchsorted(hits_D / true, RECALLS_R, side="left")
    return np.append(best_D, 0.0)[place_R]
