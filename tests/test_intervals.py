"""Intervals and tests against plain loops; p-values are what they say on data without a difference."""

from __future__ import annotations

import numpy as np
import pytest

from uniresxx.scoring import intervals
from uniresxx.scoring.intervals import bootstrap, compare_pairs
from uniresxx.scoring.metrics import ROW, SCORE_KEYS, THRESHOLDS, Counts, Outcome, scores_of_rows
from uniresxx.types import Granularity

KINDS = list(Granularity)


def outcome(rng, granularity, skill):
    targeted = granularity is not Granularity.NONE
    rejected = bool(rng.random() < (0.1 if targeted else skill))
    union = int(rng.integers(50, 5000))
    iou = float(np.clip(rng.normal(skill, 0.2), 0, 1)) if targeted and not rejected else float(rejected)
    inter = round(iou * union) if targeted else 0
    above = tuple(targeted and iou > x for x in THRESHOLDS)
    return Outcome(
        granularity, targeted, rejected, iou, inter, 0 if rejected and not targeted else union, above
    )


def counters(rng, pictures, skill=0.6, per_picture=4):
    """Int64 (pictures, granularities, counters) of random outcomes, and the outcomes."""
    table = np.zeros((pictures, len(KINDS), len(ROW)), np.int64)
    every = []
    for k in range(pictures):
        found = [outcome(rng, KINDS[rng.integers(len(KINDS))], skill) for _ in range(per_picture)]
        every.append(found)
        for j, granularity in enumerate(KINDS):
            counts = Counts()
            for one in found:
                if one.granularity is granularity:
                    counts.add(one)
            table[k, j] = counts.row[: len(ROW)]
    return table, every


def test_scores_of_arrays_are_the_scores_of_counts():
    table, every = counters(np.random.default_rng(0), 20)
    counts = Counts()
    for found in every:
        for one in found:
            counts.add(one)
    assert table.sum(axis=(0, 1)).tolist() == counts.row[: len(ROW)]
    arrays = scores_of_rows(table.sum(axis=(0, 1)).astype(float))
    assert list(arrays) == list(SCORE_KEYS)
    assert {key: float(value) for key, value in arrays.items()} == pytest.approx(counts.scores(), rel=1e-12)
    assert all(np.isnan(value) for value in scores_of_rows(np.zeros(len(ROW))).values())


def test_intervals_equal_a_loop_over_pictures():
    table, every = counters(np.random.default_rng(1), 15)
    twins = np.stack([np.arange(15) % 3, np.arange(15) % 2 * (np.arange(15) % 3 > 0)], axis=1)
    found = bootstrap(table, twins, resamples=200)
    assert (found["level"], found["resamples"], found["seed"]) == (0.95, 200, 0)
    draws = np.random.default_rng(0).integers(0, 15, (200, 15))
    overall = {key: [] for key in SCORE_KEYS}
    parts = {key: [] for key in SCORE_KEYS}
    twin = []
    for draw in draws:
        whole, none = Counts(), Counts()
        for k in draw:
            for one in every[k]:
                whole.add(one)
                if one.granularity is Granularity.NONE:
                    none.add(one)
        for target, counts in ((overall, whole), (parts, none)):
            for key, value in counts.scores().items():
                if value is not None:
                    target[key].append(value)
        if twins[draw, 0].sum():
            twin.append(100 * twins[draw, 1].sum() / twins[draw, 0].sum())
    for key in SCORE_KEYS:
        assert found["overall"][key] == pytest.approx(np.quantile(overall[key], [0.025, 0.975]), abs=1e-4)
        limits = found["by_granularity"]["none"][key]
        if parts[key]:
            assert limits == pytest.approx(np.quantile(parts[key], [0.025, 0.975]), abs=1e-4)
        else:
            assert limits is None
    assert found["twin_score"] == pytest.approx(np.quantile(twin, [0.025, 0.975]), abs=1e-4)


def test_few_draws_at_once_change_nothing(monkeypatch):
    """Memory does not depend on the number of pictures, and the numbers not on the memory."""
    rng = np.random.default_rng(2)
    (a, _), (b, _) = counters(rng, 40), counters(rng, 40)
    none = np.zeros((40, 2), np.int64)
    whole = bootstrap(a, none), compare_pairs(a.sum(1), b.sum(1), permutations=500)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 300)
    parts = bootstrap(a, none), compare_pairs(a.sum(1), b.sum(1), permutations=500)
    assert parts[0] == whole[0]
    for key, values in whole[1].items():
        assert parts[1][key]["interval"] == values["interval"]


def test_pictures_without_expressions_do_not_count():
    table, _ = counters(np.random.default_rng(3), 12)
    padded = np.concatenate([table[:5], np.zeros((30, *table.shape[1:]), np.int64), table[5:]])
    assert bootstrap(padded, np.zeros((42, 2))) == bootstrap(table, np.zeros((12, 2)))


@pytest.mark.parametrize("pictures", [0, 1])
def test_no_interval_from_fewer_than_two_pictures(pictures):
    table, _ = counters(np.random.default_rng(4), pictures)
    found = bootstrap(table, np.zeros((pictures, 2), np.int64))
    assert set(found["overall"].values()) == {None} and found["twin_score"] is None


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """80 samples of 60 pictures from a large population: 95 % intervals, 40 resamples short of luck."""
    table, _ = counters(np.random.default_rng(5), 3000)
    truth = {k: float(v) for k, v in scores_of_rows(table.sum(axis=(0, 1)).astype(float)).items()}
    rng = np.random.default_rng(6)
    hits = {"gIoU": 0, "cIoU": 0, "T-acc": 0}
    for _ in range(80):
        found = bootstrap(table[rng.choice(3000, 60, replace=False)], np.zeros((60, 2)), resamples=300)
        for key in hits:
            low, high = found["overall"][key]
            hits[key] += low <= truth[key] <= high
    assert all(68 <= count <= 80 for count in hits.values()), hits


def test_the_difference_and_its_p_value_equal_a_loop():
    rng = np.random.default_rng(7)
    a, b = (counters(rng, 6, skill)[0].sum(axis=1) for skill in (0.7, 0.5))
    found = compare_pairs(a, b, permutations=20_000)
    every = {key: [] for key in intervals.COMPARED}
    for bits in range(2**6):  # all swaps there are
        swap = np.array([bits >> k & 1 for k in range(6)], bool)[:, None]
        one, other = (np.where(swap, x, y).sum(axis=0).astype(float) for x, y in ((b, a), (a, b)))
        for key in every:
            every[key].append(float(scores_of_rows(one)[key] - scores_of_rows(other)[key]))
    for key, differences in every.items():
        assert found[key]["difference"] == pytest.approx(differences[0])
        assert found[key]["difference"] == pytest.approx(found[key]["a"] - found[key]["b"])
        exact = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-9)
        assert found[key]["p"] == pytest.approx(exact, abs=0.015), key


def test_equal_answers_have_p_one_and_no_difference():
    a = counters(np.random.default_rng(8), 30)[0].sum(axis=1)
    for values in compare_pairs(a, a).values():
        assert values["difference"] == 0 and values["p"] == 1 and values["interval"] == [0, 0]


def test_a_real_difference_is_found_and_the_order_only_turns_the_sign():
    rng = np.random.default_rng(9)
    a, b = (counters(rng, 150, skill)[0].sum(axis=1) for skill in (0.7, 0.55))
    found, turned = compare_pairs(a, b), compare_pairs(b, a)
    for key in ("gIoU", "cIoU", "mIoU"):
        assert found[key]["p"] < 0.01 and found[key]["interval"][0] > 0
        assert turned[key]["difference"] == pytest.approx(-found[key]["difference"])
        assert turned[key]["p"] == pytest.approx(found[key]["p"], abs=0.01)


def test_what_is_not_defined_is_null():
    table, _ = counters(np.random.default_rng(10), 10)
    table[:, KINDS.index(Granularity.NONE)] = 0
    found = compare_pairs(table.sum(axis=1), table.sum(axis=1))
    assert set(found["N-acc"].values()) == {None} and found["gIoU"]["p"] == 1


def test_p_values_are_calibrated_where_there_is_no_difference():
    """400 pairs of answers of equal skill: P(p <= x) is x within four standard errors, for means and for sums
    over sums, and whatever two expressions of one picture share."""
    rng = np.random.default_rng(11)
    p = {"gIoU": [], "cIoU": [], "T-acc": []}
    for _ in range(400):
        skill = rng.uniform(0.3, 0.8, 25)  # pictures differ in difficulty, for both alike
        a, b = (
            np.concatenate([counters(rng, 1, s, per_picture=3)[0].sum(axis=1) for s in skill]) for _ in "ab"
        )
        for key, values in compare_pairs(
            a, b, resamples=2, permutations=199, seed=int(rng.integers(1 << 30))
        ).items():
            if key in p:
                p[key].append(values["p"])
    for key in ("gIoU", "cIoU"):
        for level in (0.05, 0.1, 0.25, 0.5):
            error = 4 * np.sqrt(level * (1 - level) / 400)
            assert abs(np.mean(np.array(p[key]) <= level) - level) < error, (key, level)
    assert np.mean(np.array(p["T-acc"]) <= 0.05) < 0.05 + 0.045  # ties make it cautious, never bold
