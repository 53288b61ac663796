"""Histogram, rejection curve and reliability against loops that count one by one; and how they are drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.report.charts import HEIGHT, Chart, Line, bar_chart, line_chart
from eval.report.curves import BINS, decisions, iou_histograms, rejection_curve, reliability
from eval.report.runs import Case
from eval.report.write import template
from uniresxx.prediction import Prediction
from uniresxx.types import Expression, Granularity, ImageRecord

RECORD = ImageRecord("im", 1, 1, ())
TENTHS = st.integers(0, 10).map(lambda k: k / 10)


@st.composite
def cases(draw: st.DrawFn) -> list[Case]:
    """Judged answers with values that often coincide and some that are not known."""
    found = []
    for k in range(draw(st.integers(1, 24))):
        kind = draw(st.sampled_from(list(Granularity)))
        targeted, rejected = kind != Granularity.NONE, draw(st.booleans())
        iou = (draw(TENTHS) if targeted else 0.0) if not rejected else float(not targeted)
        score, absent = draw(st.none() | TENTHS), draw(st.none() | TENTHS)
        expression = Expression(f"x/val/{k}", "it", kind, None)
        found.append(
            Case(RECORD, expression, Prediction(rejected, None, None, score, absent), iou, targeted, rejected)
        )
    return found


@given(cases())
@settings(max_examples=60, deadline=None)
def test_the_area_counts_pairs_and_every_threshold_counts_answers(given_cases: list[Case]) -> None:
    known = [(c.prediction.p_absent, c.targeted) for c in given_cases if c.prediction.p_absent is not None]
    none, target = [p for p, t in known if not t], [p for p, t in known if t]
    curve = rejection_curve(given_cases)
    if not none or not target:
        assert curve is None
        return
    assert curve is not None
    wins = sum((n > t) + (n == t) / 2 for n, t in product(none, target))
    assert curve.area == pytest.approx(wins / len(none) / len(target), abs=1e-12)
    assert (curve.n_none, curve.n_target, curve.unknown) == (
        len(none),
        len(target),
        len(given_cases) - len(known),
    )
    for threshold in (-1.0, 0.0, 0.05, 0.1, 0.5, 0.55, 1.0, 2.0):
        n_acc = sum(p > threshold for p in none) / len(none)
        t_acc = sum(not p > threshold for p in target) / len(target)
        assert curve.at(threshold) == pytest.approx((n_acc, t_acc))
    assert (curve.n_acc[0], curve.t_acc[0]) == (0, 1) and (curve.n_acc[-1], curve.t_acc[-1]) == (1, 0)
    assert (np.diff(curve.n_acc) >= 0).all() and (np.diff(curve.t_acc) <= 0).all()


@given(cases())
@settings(max_examples=60, deadline=None)
def test_reliability_is_a_mean_per_bin(given_cases: list[Case]) -> None:
    answered = [c for c in given_cases if not c.rejected]
    known = [(c.prediction.score, c.iou) for c in answered if c.prediction.score is not None]
    found = reliability(given_cases)
    if not known:
        assert found is None
        return
    assert found is not None and sum(found.counts) == len(known)
    assert found.unknown == len(answered) - len(known)
    error = 0.0
    for k in range(BINS):
        inside = [(s, i) for s, i in known if min(int(s * BINS), BINS - 1) == k]
        assert found.counts[k] == len(inside)
        if not inside:
            assert found.predicted[k] is found.real[k] is None
            continue
        predicted, real = (sum(values) / len(inside) for values in zip(*inside, strict=True))
        assert (found.predicted[k], found.real[k]) == pytest.approx((predicted, real))
        error += len(inside) / len(known) * abs(predicted - real)
    assert found.error == pytest.approx(error)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_histograms_hold_every_target_once(given_cases: list[Case]) -> None:
    targets = [c for c in given_cases if c.targeted]
    found = iou_histograms(given_cases)
    assert bool(found) == bool(targets)
    for name, histogram in found.items():
        pool = [c for c in targets if name in ("overall", c.expression.granularity.value)]
        assert histogram.total == len(pool) and histogram.rejected == sum(c.rejected for c in pool)
        for k, count in enumerate(histogram.counts):
            assert count == sum(not c.rejected and min(int(c.iou * BINS), BINS - 1) == k for c in pool)
    assert "none" not in found


def test_scores_outside_0_to_1_count_as_the_nearest() -> None:
    picture = ImageRecord("im", 4, 4, ())
    expression = Expression("a", "a", Granularity.NONE, None)
    given_cases = [
        Case(picture, expression, Prediction(False, None, None, score), 0.0, False, False)
        for score in (1e308, 1e308, 1.02, -1e308)
    ]
    found = reliability(given_cases)
    assert found is not None and found.counts == (1, *(0,) * (BINS - 2), 3)
    assert (found.predicted[0], found.predicted[-1], found.error) == (0.0, 1.0, 0.75)


@given(cases())
@settings(max_examples=25, deadline=None)
def test_decisions_are_n_acc_and_t_acc(given_cases: list[Case]) -> None:
    none, target = [c for c in given_cases if not c.targeted], [c for c in given_cases if c.targeted]
    if not none or not target:
        assert decisions(given_cases) is None
    else:
        expected = (
            sum(c.rejected for c in none) / len(none),
            sum(not c.rejected for c in target) / len(target),
        )
        assert decisions(given_cases) == pytest.approx(expected)


def drawn(chart: Chart) -> ElementTree.Element:
    """The svg of a chart, as the page holds it."""
    drawing = str(template("charts.html").module.chart(chart))
    return ElementTree.fromstring(drawing[: drawing.index("</svg>") + 6].strip())


@pytest.mark.parametrize("counts", [[3, 0, 7, 14], [0, 0, 0], [1], [12_345, 1]])
def test_bars_are_as_tall_as_their_counts(counts: list[int]) -> None:
    names = [f"n{k}" for k in range(len(counts))]
    svg = drawn(bar_chart('<&" title', counts, names, "IoU"))
    heights = [float(bar.attrib["height"]) for bar in svg.iter("rect")]
    assert len(heights) == len(counts)
    for height, count in zip(heights, counts, strict=True):
        assert height == pytest.approx(max(heights) * count / max(*counts, 1), abs=0.1)
    tooltips = [bar.findtext("title") for bar in svg.iter("rect")]
    assert all(f"{name}: {count:,}" in tip for name, count, tip in zip(names, counts, tooltips, strict=True))
    assert '<&" title' in svg.attrib["aria-label"]


def test_long_lines_keep_their_ends_and_stay_inside() -> None:
    points = [(k / 5000, 1 - k / 5000) for k in range(5001)]
    svg = drawn(line_chart("t", [Line("<run>", points, [(0.5, 0.5)])], "x", "y", ((0, 0), (1, 1))))
    (line,) = svg.iter("polyline")
    numbers = [float(value) for value in line.attrib["points"].split()]
    path = list(zip(numbers[::2], numbers[1::2], strict=True))
    assert len(path) <= 240 and path[0][1] < path[-1][1] < HEIGHT and path[0][0] < path[-1][0] < 360
    assert len(list(svg.iter("circle"))) == 1
