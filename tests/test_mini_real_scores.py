"""Stub predictors on the developers' photographs score what dense arrays, written out here, say.

Nothing of the scoring is shared with the program: codes are read by the loop below, masks are bool arrays,
scores are means and sums of floats.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from uniresxx.data.catalog import load_benchmark
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import to_json

ROOT = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
pytestmark = pytest.mark.skipif(
    not (ROOT / "expected.json").is_file(), reason="the developers' photos are not here"
)
BENCHMARKS = [
    f"{name}/{split}" for name in ("refcoco", "grefcoco") for split in ("train", "val", "testA", "testB")
]
BENCHMARKS += [
    f"refcocom/{s}_{kind}"
    for s in ("train", "val", "testA", "testB")
    for kind in ("part_only", "object_part")
]
STUBS = ("perfect", "empty", "full", "box", "shifted", "inverted")
PERFECT = {"gIoU": 100, "cIoU": 100, "mIoU": 100, "T-acc": 100}


@lru_cache(maxsize=1)  # pictures are large, and tests come set by set
def read(name):
    return load_benchmark(name, ROOT)


def dense(rle):
    """Bool (y, x) of a compressed code: 5 bits a character and one that says more follow; differences from the
    fourth run on; columns first."""
    runs, value, shift = [], 0, 0
    for char in rle["counts"]:
        code = ord(char) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    pixels = np.concatenate([np.full(run, k % 2 == 1) for k, run in enumerate(runs)])
    return pixels.reshape(rle["size"][::-1]).T


@lru_cache(maxsize=1)  # pictures are large, and tests come set by set
def truths(name):
    """(expression, height, width, bool mask or None) of every expression."""
    return [
        (e, r.height, r.width, None if e.rle is None else dense(e.rle))
        for r in read(name)
        for e in r.expressions
    ]


def reply(stub, truth, height, width):
    """(rejected, bool mask) of a stub; where nothing is there, `perfect` and `shifted` know it."""
    there = np.zeros((height, width), bool) if truth is None else truth
    rejected = truth is None and stub in ("perfect", "shifted")
    if stub == "empty":
        return False, np.zeros_like(there)
    if stub == "full":
        return False, np.ones_like(there)
    if stub == "inverted":
        return False, ~there
    answer = there.copy()
    if stub == "box" and truth is not None:
        ys, xs = np.nonzero(truth)
        answer[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    if stub == "shifted":
        answer = np.zeros_like(there)
        answer[5:, 7:] = there[:-5, :-7]
    return rejected, answer


def scores_of(rows):
    """Scores of (truth or None, rejected, answer), by their definitions."""
    ious, target_ious, inter_sum, union_sum, none, target = [], [], 0, 0, [], []
    for truth, rejected, answer in rows:
        if truth is None:
            none.append(rejected)
            ious.append(float(rejected))
            union_sum += 0 if rejected else int(answer.sum())
            continue
        target.append(not rejected)
        said = np.zeros_like(answer) if rejected else answer
        inter, union = int((said & truth).sum()), int((said | truth).sum())
        inter_sum, union_sum = inter_sum + inter, union_sum + union
        ious.append(inter / union)
        target_ious.append(inter / union)

    def mean(values):
        return 100 * sum(values) / len(values) if values else None

    found = {"gIoU": mean(ious), "cIoU": 100 * inter_sum / union_sum if union_sum else None}
    found["mIoU"] = mean(target_ious)
    for x in (0.5, 0.6, 0.7, 0.8, 0.9):
        found[f"Pr@{x}"] = mean([iou > x for iou in target_ious])
    return found | {"N-acc": mean(none), "T-acc": mean(target)}


def same(ours, rows):
    theirs = scores_of(rows)
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        if value is None:
            assert ours[key] is None, key
        else:
            assert ours[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key


def size_of(truth):
    pixels = int(truth.sum())
    return "small" if pixels < 1024 else "medium" if pixels < 9216 else "large"


def words_of(text):
    count = len(text.split())
    return "1-2" if count <= 2 else "3-5" if count <= 5 else "6-10" if count <= 10 else "11+"


def answered(name, stub, path):
    """Write the stub's predictions; the same in memory as (expression, truth, rejected, dense answer)."""
    rows = []
    with path.open("w") as file:
        for e, height, width, truth in truths(name):
            rejected, answer = reply(stub, truth, height, width)
            rows.append((e, truth, rejected, answer))
            line = to_json(e.expression_id, Prediction(rejected, masks.encode(answer), None))
            file.write(json.dumps(line) + "\n")
    return rows


@pytest.mark.parametrize("stub", STUBS)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_stub_scores_what_dense_arrays_say(name, stub, tmp_path):
    rows = answered(name, stub, tmp_path / "p.jsonl")
    entry = score_file(tmp_path / "p.jsonl", read(name), name)
    assert entry["n_expressions"] == len(rows) and entry["partial"] is None
    same(entry["overall"], [row[1:] for row in rows])
    for granularity, scores in entry["by_granularity"].items():
        same(scores, [row[1:] for row in rows if row[0].granularity == granularity])
    for size, scores in entry["by_size"].items():
        chosen = [row[1:] for row in rows if row[1] is not None and size_of(row[1]) == size]
        same(scores, chosen)
        assert entry["counts"]["by_size"][size]["n"] == len(chosen)
    for length, scores in entry["by_length"].items():
        chosen = [row[1:] for row in rows if words_of(row[0].text) == length]
        same(scores, chosen)
        assert entry["counts"]["by_length"][length]["n"] == len(chosen)
    same(entry["trivial"]["always_reject"]["overall"], [(t, True, a) for _, t, _, a in rows])
    same(entry["trivial"]["never_reject"]["overall"], [(t, False, a) for _, t, _, a in rows])
    if stub == "perfect":
        assert all(entry["overall"][key] == value for key, value in PERFECT.items())
        assert all(limits in (None, [100, 100]) for limits in entry["intervals"]["overall"].values())
    for key, limits in entry["intervals"]["overall"].items():
        value = entry["overall"][key]
        assert (limits is None) == (value is None)
        assert limits is None or (limits[0] <= limits[1] and limits[0] >= 0 and limits[1] <= 100)
