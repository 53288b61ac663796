"""Numbers of the charts: histograms of IoU, rejection curve of `p_absent`, reliability of `score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.report.runs import Case
from uniresxx.types import Granularity

BINS = 10  # of equal width over 0..1; the last one holds 1 itself


@dataclass(frozen=True, slots=True)
class Histogram:
    """IoU of expressions with a target, in bins; rejected ones are counted separately."""

    rejected: int
    counts: tuple[int, ...]  # BINS, of the answered ones

    @property
    def total(self) -> int:
        """Expressions with a target."""
        return self.rejected + sum(self.counts)


def iou_histograms(cases: Sequence[Case]) -> dict[str, Histogram]:
    """Histograms "overall" and by granularity, where there are targets."""
    found = {"overall": _histogram([c for c in cases if c.targeted])}
    for granularity in Granularity:
        pool = [c for c in cases if c.targeted and c.expression.granularity == granularity]
        if pool:
            found[granularity.value] = _histogram(pool)
    return found if found["overall"].total else {}


def _histogram(pool: Sequence[Case]) -> Histogram:
    ious = np.array([c.iou for c in pool if not c.rejected])
    counts = np.bincount(bin_of(ious), minlength=BINS) if ious.size else np.zeros(BINS, int)
    return Histogram(len(pool) - ious.size, tuple(int(n) for n in counts))


def bin_of(values: np.ndarray) -> np.ndarray:
    """Index of the bin of each value; values outside 0..1 belong to the first and the last bin."""
    return np.minimum((np.clip(values, 0, 1) * BINS).astype(int), BINS - 1)


@dataclass(frozen=True, slots=True)
class RejectionCurve:
    """N-acc and T-acc (0..1) for every threshold: rejected is `p_absent` > threshold.

    Thresholds fall from the largest `p_absent` (nothing rejected) to below the smallest (all rejected).
    """

    thresholds: np.ndarray
    n_acc: np.ndarray
    t_acc: np.ndarray
    n_target: int
    n_none: int
    unknown: int  # answers without p_absent, left out

    @property
    def area(self) -> float:
        """Area under N-acc over T-acc: how probably a random absent target has a larger `p_absent` than a random
        present one, ties counted half (Mann-Whitney; 0.5 is chance)."""
        heights = (self.n_acc[1:] + self.n_acc[:-1]) / 2
        return float((heights * -np.diff(self.t_acc)).sum())

    def at(self, threshold: float) -> tuple[float, float]:
        """(N-acc, T-acc) at one threshold."""
        at = int(np.searchsorted(-self.thresholds, -threshold))  # the first threshold that is not above it
        return float(self.n_acc[at]), float(self.t_acc[at])


def rejection_curve(cases: Sequence[Case]) -> RejectionCurve | None:
    """The curve over all thresholds; None unless `p_absent` is known for present and for absent targets."""
    known = [(c.prediction.p_absent, c.targeted) for c in cases if c.prediction.p_absent is not None]
    values = np.array([value for value, _ in known], dtype=np.float64)
    targeted = np.array([target for _, target in known], dtype=bool)
    n_target, n_none = int(targeted.sum()), int((~targeted).sum())
    if not n_target or not n_none:
        return None
    # Values above a threshold are rejected: each distinct value is one, and one lies below all of them.
    levels = np.unique(values)[::-1]
    thresholds = np.append(levels, -np.inf)
    above_none = n_none - np.searchsorted(np.sort(values[~targeted]), thresholds, side="right")
    above_target = n_target - np.searchsorted(np.sort(values[targeted]), thresholds, side="right")
    return RejectionCurve(
        thresholds,
        above_none / n_none,
        1 - above_target / n_target,
        n_target,
        n_none,
        len(cases) - len(known),
    )


def decisions(cases: Sequence[Case]) -> tuple[float, float] | None:
    """(N-acc, T-acc), 0..1, of the answers' own decisions; None where one is not defined."""
    none, target = [c for c in cases if not c.targeted], [c for c in cases if c.targeted]
    if not none or not target:
        return None
    return sum(c.rejected for c in none) / len(none), sum(not c.rejected for c in target) / len(target)


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted and real IoU of answered expressions, in bins of the predicted one."""

    counts: tuple[int, ...]
    predicted: tuple[float | None, ...]  # mean `score` per bin, None where the bin is empty
    real: tuple[float | None, ...]  # mean IoU per bin; a mask for an absent target counts 0
    unknown: int  # answers without a score, left out

    @property
    def error(self) -> float:
        """Expected calibration error: mean |predicted - real| over bins, weighted by their counts (Naeini
        et al., AAAI 2015)."""
        gaps = [
            n * abs(p - r)
            for n, p, r in zip(self.counts, self.predicted, self.real, strict=True)
            if p is not None and r is not None
        ]
        return sum(gaps) / sum(self.counts)


def reliability(cases: Sequence[Case]) -> Reliability | None:
    """Reliability of `score` over the answers that were not rejected; None where none has a score.

    Some heads predict a little over 1 (SAM's is not bounded): scores outside 0..1 count as 0 or 1.
    """
    answered = [c for c in cases if not c.rejected]
    known = [(c.prediction.score, c.iou) for c in answered if c.prediction.score is not None]
    if not known:
        return None
    pairs = np.clip(np.array(known, dtype=np.float64), 0, 1)
    bins = bin_of(pairs[:, 0])
    counts = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, pairs[:, column], BINS) for column in (0, 1))
    predicted, real = (
        tuple(float(total / n) if n else None for total, n in zip(column, counts, strict=True))
        for column in sums
    )
    return Reliability(tuple(int(n) for n in counts), predicted, real, len(answered) - len(known))
