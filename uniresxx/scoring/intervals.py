"""Confidence intervals of scores, and tests of whether two scores differ: images are resampled.

Expressions of one image share its difficulty, so images are drawn, never expressions. Shapes: I images,
G granularities, R resamples, K = len(ROW) counters, S any set of sums. All draws are seeded. Limits are rounded to
1e-4 points, far above what a different order of summing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from uniresxx.scoring.metrics import ROW, percent_of, scores_of_rows
from uniresxx.types import Granularity

CONFIDENCE = 0.95
RESAMPLES = 1000
PERMUTATIONS = 10_000
SEED = 0
COMPARED = ("gIoU", "cIoU", "mIoU", "N-acc", "T-acc")
_DRAWS_AT_ONCE = 1 << 20  # numbers in memory, whatever the number of pictures
_DIGITS = 4

Interval = list[float]  # [low, high] in percent


def bootstrap(
    images_IGK: np.ndarray, twins_I2: np.ndarray, undefined: Sequence[str] = (), resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Percentile intervals of every score: images drawn with replacement (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 13).

    An interval is null where the score is null, or with fewer than two images. Resamples in which a score is not
    defined, for example because no expression without a target was drawn, are left out of its interval (our choice).

    Args:
        images_IGK: int64 counters per image and granularity, in the order of Granularity.
        twins_I2: per image, complete groups of twins and answered ones.
        undefined: scores that the protocol does not have.
    """
    used = images_IGK[:, :, 0].sum(axis=1) > 0
    images_IGK, twins_I2 = images_IGK[used], twins_I2[used]
    count, kinds, columns = images_IGK.shape
    rows_IS = np.concatenate([images_IGK.reshape(count, kinds * columns), twins_I2], axis=1).astype(
        np.float64
    )
    sums_RS = _resampled(rows_IS, resamples) if count > 1 else np.zeros((0, rows_IS.shape[1]))
    parts_RGK = sums_RS[:, : kinds * columns].reshape(-1, kinds, columns)
    by_kind = scores_of_rows(parts_RGK)
    return {
        "level": CONFIDENCE,
        "resamples": resamples,
        "images": count,
        "seed": SEED,
        "overall": _intervals(scores_of_rows(parts_RGK.sum(axis=1)), undefined),
        "by_granularity": {
            g.value: _intervals({key: values[:, k] for key, values in by_kind.items()}, undefined)
            for k, g in enumerate(Granularity)
        },
        "twin_score": _interval(percent_of(sums_RS[:, -1], sums_RS[:, -2])),
    }


def _resampled(rows_IS: np.ndarray, resamples: int) -> np.ndarray:
    """Sums (R, S) over images drawn with replacement."""
    rng = np.random.default_rng(SEED)
    count = len(rows_IS)
    sums_RS = np.empty((resamples, rows_IS.shape[1]))
    for part in _parts(resamples, count):
        size = part.stop - part.start
        drawn = rng.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        sums_RS[part] = times.astype(np.float64) @ rows_IS
    return sums_RS


def _parts(total: int, width: int) -> Iterator[slice]:
    """Slices of `total` rows, each of so few rows of `width` numbers that memory stays flat."""
    step = max(1, _DRAWS_AT_ONCE // max(1, width))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def _intervals(scores: Mapping[str, np.ndarray], undefined: Sequence[str]) -> dict[str, Interval | None]:
    return {key: None if key in undefined else _interval(values) for key, values in scores.items()}


def _interval(values_R: np.ndarray) -> Interval | None:
    values = values_R[np.isfinite(values_R)]
    if values.size == 0:
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return [round(float(low), _DIGITS), round(float(high), _DIGITS)]


def compare_pairs(
    a_IK: np.ndarray,
    b_IK: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
) -> dict[str, dict[str, Any]]:
    """Test whether two models' answers to the same images differ.

    p is that of approximate randomisation (Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989). If A and
    B do not differ, the counters of each image could as well be swapped; p = (1 + number of random swaps with a
    difference at least as large) / (1 + permutations), which is never 0 and, for exchangeable images, at most x with
    probability x (Phipson and Smyth 2010). It holds for ratios of sums (cIoU) as for means. The interval is a paired
    percentile bootstrap: the same images are drawn for both.

    Returns:
        By score of COMPARED: `a`, `b`, `difference` (a - b), its `interval`, `p`; null where it is not defined.
    """
    rows_IS = np.concatenate([a_IK, b_IK], axis=1).astype(np.float64)
    a, b = _both(rows_IS.sum(axis=0))
    drawn_a, drawn_b = _both(_resampled(rows_IS, resamples) if len(rows_IS) > 1 else rows_IS[:0])
    swapped_a, swapped_b = _both(_swapped(a_IK, b_IK, permutations, seed))
    found = {}
    for key in COMPARED:
        if not np.isfinite([a[key], b[key]]).all():
            found[key] = dict.fromkeys(("a", "b", "difference", "interval", "p"))
            continue
        difference = float(a[key] - b[key])
        # Swaps with an equal difference must count although sums of floats differ in the last digit. Swaps that
        # leave a score undefined count as well, which makes p larger.
        smaller = np.abs(swapped_a[key] - swapped_b[key]) < abs(difference) - 1e-9
        found[key] = {
            "a": float(a[key]),
            "b": float(b[key]),
            "difference": difference,
            "interval": _interval(drawn_a[key] - drawn_b[key]),
            "p": float((1 + permutations - smaller.sum()) / (1 + permutations)),
        }
    return found


def _both(sums_S: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return scores_of_rows(sums_S[..., : len(ROW)]), scores_of_rows(sums_S[..., len(ROW) :])


def _swapped(a_IK: np.ndarray, b_IK: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """Sums (R, 2 K) of A and B after swapping a random half of the images."""
    rng = np.random.default_rng(seed)
    gap_IK = (b_IK - a_IK).astype(np.float64)
    sums_RS = np.empty((permutations, 2 * len(ROW)))
    for part in _parts(permutations, len(gap_IK)):
        swap = rng.integers(0, 2, (part.stop - part.start, len(gap_IK)), dtype=np.int8)
        moved_RK = swap.astype(np.float64) @ gap_IK
        sums_RS[part, : len(ROW)] = a_IK.sum(axis=0) + moved_RK
        sums_RS[part, len(ROW) :] = b_IK.sum(axis=0) - moved_RK
    return sums_RS
