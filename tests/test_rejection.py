"""What counts as rejected: four rules, and a threshold that is tuned on val and nowhere else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import to_json
from uniresxx.scoring.rejection import FLAG, Rejection, best_threshold, tune
from uniresxx.types import Expression, Granularity, ImageRecord

FULL = masks.encode(np.ones((4, 5), bool))
HALF = masks.encode(np.tri(4, 5, dtype=bool))
EMPTY = masks.empty(4, 5)


def answer(rejected, mask, text="", p=None, forced=None):
    return Prediction(rejected, mask, text, None, p, forced)


@pytest.mark.parametrize(
    ("rule", "given_", "rejected", "mask"),
    [
        (FLAG, answer(True, FULL), True, FULL),
        (Rejection("no_seg"), answer(False, FULL, "no."), True, FULL),
        (Rejection("no_seg"), answer(True, None, "[REJ] [SEG]", forced=HALF), False, HALF),
        (Rejection("no_seg"), answer(True, FULL, "[SEG]", forced=HALF), False, FULL),
        (Rejection("no_seg"), answer(True, None, "[SEG]"), False, None),
        (Rejection("empty_mask"), answer(False, EMPTY), True, EMPTY),
        (Rejection("empty_mask"), answer(False, None), True, None),
        (Rejection("empty_mask"), answer(True, HALF), False, HALF),
        (Rejection("empty_mask"), answer(True, None, forced=HALF), True, None),
        (Rejection("p_absent", 0.5), answer(True, HALF, p=0.5), False, HALF),  # above, not at
        (Rejection("p_absent", 0.5), answer(False, HALF, p=0.51), True, HALF),
        (Rejection("p_absent", 0.0), answer(False, HALF, p=0.1), True, HALF),
    ],
)
def test_each_rule(rule, given_, rejected, mask):
    found = rule.apply(given_)
    assert (found.rejected, found.rle, found.mask_if_forced) == (rejected, mask, given_.mask_if_forced)


def test_what_a_rule_lacks_is_said():
    with pytest.raises(InputError, match="needs `text`"):
        Rejection("no_seg").apply(answer(True, None, None))
    with pytest.raises(InputError, match="needs `p_absent`"):
        Rejection("p_absent", 0.5).apply(answer(True, None))
    with pytest.raises(InputError, match="--threshold X, or --tune-on"):
        Rejection("p_absent")
    with pytest.raises(InputError, match="takes no threshold"):
        Rejection("flag", 0.5)
    with pytest.raises(InputError, match="finite"):
        Rejection("p_absent", float("nan"))
    with pytest.raises(InputError, match="known: flag, no_seg, empty_mask, p_absent"):
        Rejection("mood")


points = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=2)


@settings(max_examples=200, deadline=None)
@given(points.filter(lambda p: len({t for _, t in p}) == 2))
def test_no_threshold_beats_the_tuned_one(pairs):
    def balanced(threshold):
        kept = [p <= threshold for p, t in pairs if t]
        refused = [p > threshold for p, t in pairs if not t]
        return np.mean(kept) + np.mean(refused)

    best = balanced(best_threshold(pairs))
    assert best >= max(balanced(t) for t in np.linspace(-0.5, 1.5, 81)) - 1e-12


def test_of_equal_thresholds_the_one_nearest_to_a_half_is_taken():
    assert best_threshold([(0.2, True), (0.9, False)]) == pytest.approx(0.55)
    assert best_threshold([(0.1, True), (0.3, True), (0.9, False)]) == pytest.approx(0.6)
    low, high = 0.5, np.nextafter(0.5, 1)  # neighbours: no number lies between
    assert best_threshold([(low, True), (high, False)]) == low
    with pytest.raises(InputError, match="no expression without a target"):
        best_threshold([(0.5, True)])
    with pytest.raises(InputError, match="no expression with a target"):
        best_threshold([(0.5, False)])


def records(split):
    pair = ((Granularity.OBJECT, FULL), (Granularity.NONE, None))
    return [
        ImageRecord(str(k), 4, 5, tuple(Expression(f"m/{split}/{k}_{g}", "x", g, t) for g, t in pair))
        for k in range(20)
    ]


def write(path, split, p_of, **changes):
    lines = []
    for number, record in enumerate(records(split)):
        for e in record.expressions:
            p = p_of(number, e.rle is not None)
            lines.append(to_json(e.expression_id, answer(False, FULL, p=p)) | changes)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_threshold_is_tuned_on_val_and_written_down(tmp_path):
    val = write(tmp_path / "val.jsonl", "val", lambda k, there: 0.2 + k / 100 if there else 0.45 + k / 100)
    rule = tune(val, records("val"), "m/val")
    assert rule.tuned_on == "m/val" and 0.39 < rule.threshold < 0.45
    test = write(tmp_path / "test.jsonl", "testA", lambda k, there: 0.4 if there else 0.5)
    entry = score_file(test, records("testA"), "m/testA", rejection=rule)
    assert entry["overall"]["N-acc"] == entry["overall"]["T-acc"] == 100
    assert entry["rejection"] == {"rule": "p_absent", "threshold": rule.threshold, "tuned_on": "m/val"}
    assert score_file(test, records("testA"), "m/testA")["overall"]["N-acc"] == 0


@pytest.mark.parametrize("name", ["m/testA", "m/train", "m/validation", "m/test_val", "m", "val"])
def test_only_a_val_split_may_tune(tmp_path, name):
    with pytest.raises(InputError, match="named val only"):
        tune(tmp_path / "none.jsonl", [], name)


def test_bad_files_tune_nothing(tmp_path):
    path = write(tmp_path / "val.jsonl", "val", lambda k, there: 0.5, p_absent=None)
    with pytest.raises(InputError, match=r"line 1: rule p_absent needs `p_absent`.*40 missing"):
        tune(path, records("val"), "m/val")
