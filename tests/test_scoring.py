"""Scoring streams: any order, flat memory, partial files, PNG folders; breakdowns against loops."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file, write_metrics
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import LENGTHS, SIZES, length_name, size_name
from uniresxx.scoring.predictions import sizes_of, stream_predictions, to_json
from uniresxx.scoring.problems import Problems
from uniresxx.scoring.protocols import STRICT
from uniresxx.scoring.rejection import Rejection
from uniresxx.scoring.tally import entry_of, tally_answers
from uniresxx.types import Expression, Granularity, ImageRecord

ROOT = Path(__file__).resolve().parents[1]
STATUS = Path("/proc/self/status")
H, W = 100, 120
G = Granularity
KINDS = (G.PART, G.OBJECT, G.MULTI, G.NONE)


def block(side, y=0, x=0):
    mask = np.zeros((H, W), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def picture(number, words=(1, 3, 7, 12)):
    """A part of 900 px (small), an object of 1024 px (medium), a group of 9216 px (large), something absent."""
    truths = (block(30), block(32), block(96), None)
    expressions = tuple(
        Expression(
            f"made/val/{number}_{g}", " ".join(["w"] * n), g, None if t is None else masks.encode(t), twin="t"
        )
        for g, t, n in zip(KINDS, truths, words, strict=True)
    )
    return ImageRecord(f"im{number}", H, W, expressions)


RECORDS = [picture(k) for k in range(12)]
NAMES = [e.expression_id for r in RECORDS for e in r.expressions]


def answers(seed=0, records=RECORDS):
    """Every kind of answer: right, off, empty, rejected with and without masks."""
    rng = np.random.default_rng(seed)
    found = {}
    for e in (e for r in records for e in r.expressions):
        mask = masks.encode(
            block(int(rng.integers(0, 90)), int(rng.integers(0, 20)), int(rng.integers(0, 20)))
        )
        given = e.rle if e.rle is not None and rng.random() < 0.4 else mask
        rejected = bool(rng.random() < 0.3)
        found[e.expression_id] = Prediction(
            rejected, None if rejected and rng.random() < 0.5 else given, "[REJ]." if rejected else "[SEG].",
            0.5, float(rng.random()), given if rejected else None,
        )  # fmt: skip
    return found


def write(path, found, names=None):
    lines = [json.dumps(to_json(name, found[name])) + "\n" for name in names or found]
    path.write_text("".join(lines))
    return path


def scored(found, records=RECORDS, protocol=STRICT):
    """The entry of metrics.json for answers that are in memory."""
    return entry_of(tally_answers(found.items(), records, protocol), "made/val", protocol)


def bare(entry):
    return {key: value for key, value in entry.items() if key != "versions"}


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_file_changes_nothing(tmp_path, seed):
    found = answers(seed)
    whole = scored(found)
    names = list(found)
    random.Random(seed).shuffle(names)
    assert bare(score_file(write(tmp_path / "p.jsonl", found, names), RECORDS, "made/val")) == bare(whole)


def test_sizes_and_lengths_have_the_edges_they_say():
    assert [size_name(n) for n in (1, 1023, 1024, 9215, 9216)] == [
        "small",
        "small",
        "medium",
        "medium",
        "large",
    ]
    assert [length_name(n) for n in (1, 2, 3, 5, 6, 10, 11)] == (
        ["1-2", "1-2", "3-5", "3-5", "6-10", "6-10", "11+"]
    )


def test_breakdowns_are_the_scores_of_their_expressions():
    found = answers(1)
    entry = scored(found)
    # each picture has one of each size and length, which are also the granularities
    for size, g in zip(SIZES, KINDS, strict=False):
        assert entry["by_size"][size] == entry["by_granularity"][g]
        assert entry["counts"]["by_size"][size]["n"] == 12
    for length, g in zip(LENGTHS, KINDS, strict=True):
        assert entry["by_length"][length] == entry["by_granularity"][g]
        assert entry["counts"]["by_length"][length]["n"] == 12
    assert list(entry["by_size"]) == list(SIZES) and list(entry["by_length"]) == list(LENGTHS)
    only = scored(found, [picture(0)])
    assert only["by_size"]["small"]["N-acc"] is None


def test_a_score_that_a_protocol_does_not_define_is_null_everywhere():
    odd = replace(STRICT, name="odd", undefined=("gIoU", "N-acc"))
    entry = scored(answers(), protocol=odd)
    groups = [entry["overall"], entry["intervals"]["overall"], entry["trivial"]["all_objects"]["overall"]]
    for key in ("by_granularity", "by_size", "by_length"):
        groups += entry[key].values()
    groups += entry["intervals"]["by_granularity"].values()
    assert all(group[key] is None for group in groups for key in odd.undefined)
    assert entry["overall"]["mIoU"] is not None


def repeat_first(records, world_size):
    """What a sampler does that pads with the first pictures, from the start again where they do not suffice."""
    numbers = (k % len(records) for k in range(-len(records) % world_size))
    return [e.expression_id for k in numbers for e in records[k].expressions]


def test_padding_counts_what_the_protocol_says_again():
    """12 pictures on 5 processes are padded to 15, on 24 each comes twice, on 36 three times."""
    way = replace(STRICT, padded=repeat_first)
    given = list(answers(2).items())
    once = tally_answers(given, RECORDS, way)
    padded = tally_answers(given, RECORDS, way, 5)
    twice = tally_answers([p for p in given if p[0] in sizes_of(RECORDS[:3])], RECORDS[:3], way)
    for name, tally in once.tallies.items():
        both = tally.overall.merge(twice.tallies[name].overall)
        assert padded.tallies[name].overall == both
        assert padded.tallies[name].twins == tally.twins
    assert (once.repeated, padded.repeated) == (0, 12)
    assert tally_answers(given, RECORDS, way, 6).tallies == once.tallies
    model = once.tallies["model"].overall
    assert tally_answers(given, RECORDS, way, 24).tallies["model"].overall == model.merge(model)
    thrice = tally_answers(given, RECORDS, way, 36).tallies["model"].overall
    assert thrice == model.merge(model).merge(model)
    assert tally_answers(given, RECORDS, STRICT, 36).tallies == once.tallies  # strict never pads


def test_expressions_that_are_not_counted_need_no_answer(tmp_path, monkeypatch):
    way = replace(STRICT, name="first", counted=lambda record: record.expressions[:1])
    monkeypatch.setattr("uniresxx.scoring.protocols.PROTOCOLS", (way,))
    found = answers()
    path = write(tmp_path / "p.jsonl", found, [n for n in found if n.endswith(("part", "none"))])
    entry = score_file(path, RECORDS, "made/val", "first")
    assert entry["n_expressions"] == 12 and entry["partial"] is None


# ---------------------------------------------------------------------------------------- bad files


def spoil(found):
    """A file with one problem of every kind; (lines, ids that can still be scored)."""
    lines = [json.dumps(to_json(name, found[name])) + "\n" for name in NAMES]
    broken = json.loads(lines[3]) | {"mask": {"size": [H, W + 1], "counts": "0"}}
    lines[3] = json.dumps(broken) + "\n"
    lines[5] = json.dumps(json.loads(lines[5]) | {"mask": {"size": [H, W], "counts": "5"}}) + "\n"
    lines[7] = json.dumps(json.loads(lines[7]) | {"score": 0}).replace('"score": 0', '"score": NaN') + "\n"
    lines[9] = lines[9].replace(NAMES[9], "made/val/other")
    lines[11] = "[" * 100_000 + "\n"  # deeper than any parser goes
    lines.append(lines[0])
    lines[-2] = lines[-2]
    lines.append(lines[20][:-30])
    gone = {NAMES[k] for k in (3, 5, 7, 9, 11)}
    return lines, [n for n in NAMES if n not in gone]


def test_every_kind_of_problem_is_listed_and_counted(tmp_path):
    lines, _ = spoil(answers())
    path = tmp_path / "p.jsonl"
    path.write_text("".join(lines))
    with pytest.raises(InputError) as raised:
        score_file(path, RECORDS, "made/val")
    said = str(raised.value)
    for word in (
        "line 4: `mask`: mask is 100 x 121",
        "line 6: `mask`: mask code covers",
        "line 8: not JSON",
        "line 10: unknown expression_id",
        "line 12: not JSON",
        "duplicate expression_id",
        "(truncated last line)",
        "5 of 48 expressions missing",
        "2 wrong values",
        "1 unknown ids",
        "3 not JSON",
        "5 missing",
        "--allow-partial",
    ):
        assert word in said, word


def test_partial_files_are_scored_as_far_as_they_go(tmp_path):
    found = answers()
    lines, left = spoil(found)
    path = tmp_path / "p.jsonl"
    path.write_text("".join(lines))
    before = path.read_bytes()
    entry = score_file(path, RECORDS, "made/val", allow_partial=True)
    assert entry["partial"] == {"scored": 43, "expressions": 48} and entry["n_expressions"] == 43
    assert "line 4" in entry["problems"]
    kept = [r for r in (thin(r, left) for r in RECORDS) if r.expressions]
    expected = scored(found, kept)
    for key in ("overall", "by_granularity", "by_size", "by_length", "twin_score", "intervals"):
        assert entry[key] == expected[key], key
    assert entry["trivial"]["always_reject"] == expected["trivial"]["always_reject"]
    assert path.read_bytes() == before
    path.write_text(lines[9])
    with pytest.raises(InputError, match="no expression of made/val is answered"):
        score_file(path, RECORDS, "made/val", allow_partial=True)


def thin(record, names):
    return ImageRecord(
        record.image_id, H, W, tuple(e for e in record.expressions if e.expression_id in names)
    )


def test_numbers_of_hundreds_of_digits_and_odd_segments_are_refused_not_raised(tmp_path):
    name = NAMES[0]
    path = tmp_path / "p.jsonl"
    for text in ('"score":1' + "0" * 400, '"segments":5', '"segments":{"a":1}', '"p_absent":-1e999'):
        path.write_text(f'{{"expression_id":"{name}","rejected":true,{text}}}\n')
        problems = Problems()
        assert list(stream_predictions(path, sizes_of(RECORDS), problems)) == []
        assert problems.kinds == {"wrong values": 1} and len(str(problems)) < 300


def test_many_problems_stay_one_short_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("x\n" * 20_000)
    problems = Problems()
    assert list(stream_predictions(path, {}, problems)) == []
    assert problems.kinds["not JSON"] == 20_000 and len(str(problems)) < 400


# ---------------------------------------------------------------------------------------- PNG folders


def dense_of(prediction):
    return np.zeros((H, W), bool) if prediction.rle is None else masks.decode(prediction.rle)


def write_pngs(folder, found, flat=False, value=255):
    for name, prediction in found.items():
        path = folder / (f"{name.replace('/', '__') if flat else name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dense_of(prediction).astype(np.uint8) * value).save(path)
    return folder


@pytest.mark.parametrize(("flat", "value"), [(False, 255), (True, 1)])
def test_a_folder_of_pngs_scores_as_the_same_masks_in_a_file(tmp_path, flat, value):
    found = {name: Prediction(False, masks.encode(dense_of(p)), None, None) for name, p in answers().items()}
    folder = write_pngs(tmp_path / "masks", found, flat, value)
    (folder / "notes.txt").write_text("ignored")
    (folder / ".hidden.png").write_text("ignored")
    path = write(tmp_path / "p.jsonl", found)
    for rule in (Rejection(), Rejection("empty_mask")):
        entry = score_file(folder, RECORDS, "made/val", rejection=rule)
        assert bare(entry) == bare(score_file(path, RECORDS, "made/val", rejection=rule))
    assert entry["overall"]["N-acc"] is not None


def test_wrong_pngs_are_listed(tmp_path):
    folder = write_pngs(tmp_path / "m", answers())
    Image.new("L", (W + 1, H)).save(folder / f"{NAMES[0]}.png")
    (folder / f"{NAMES[1]}.png").write_bytes(b"no picture")
    (folder / f"{NAMES[2]}.png").unlink()
    Image.new("L", (W, H)).save(folder / "stranger.png")
    Image.new("L", (W, H)).save(folder / f"{NAMES[4].replace('/', '__')}.png")  # said twice
    with pytest.raises(InputError) as raised:
        score_file(folder, RECORDS, "made/val")
    for word in ("mask is 100 x 121", f"{NAMES[1]}.png: ", "3 of 48 expressions missing", "'stranger'",
                 "duplicate expression_id"):  # fmt: skip
        assert word in str(raised.value), word
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no PNG"):
        score_file(tmp_path / "none", RECORDS, "made/val")


# ---------------------------------------------------------------------------------------- metrics.json


def test_only_the_same_question_replaces_an_entry(tmp_path):
    entry = scored(answers()) | {"predictions": "a.jsonl", "limit": None}
    others = [
        entry | change
        for change in (
            {"benchmark": "other"}, {"split": "test"}, {"protocol": "rela"}, {"predictions": "b.jsonl"},
            {"padded_world_size": 8}, {"limit": 3}, {"rejection": Rejection("empty_mask").describe()},
            {"partial": {"scored": 1, "expressions": 2}},
        )
    ]  # fmt: skip
    path = tmp_path / "metrics.json"
    for k, other in enumerate([entry, *others]):
        assert len(write_metrics(path, [other])) == k + 1
    again = write_metrics(path, [entry | {"no_answer": 77}])
    assert len(again) == 9 and again[-1]["no_answer"] == 77
    older = {key: value for key, value in entry.items() if key not in ("rejection", "partial")}
    path.write_text(json.dumps([older]))
    assert len(write_metrics(path, [entry])) == 1


# ---------------------------------------------------------------------------------------- flat memory


CHILD = """
import json, sys
from collections.abc import Sequence
from pathlib import Path
import numpy as np
from uniresxx.imaging import masks
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.types import Expression, Granularity as G, ImageRecord

class Pictures(Sequence):  # made when they are asked for: the benchmark's own memory should not count
    def __len__(self):
        return count
    def __getitem__(self, k):
        if k >= count:
            raise IndexError(k)
        return ImageRecord(str(k), 100, 120, tuple(
            Expression(f"m/v/{k}_{g}", "a b", g, t) for g, t in ((G.OBJECT, truth), (G.NONE, None))))

count, path = int(sys.argv[1]), Path(sys.argv[2])
rng = np.random.default_rng(0)
truth, answer = (masks.encode(rng.random((100, 120)) < share) for share in (0.1, 0.05))
line = {"rejected": False, "mask": dict(answer), "later": "x" * 3000}
with path.open("w") as file:
    for k in range(count):
        for g in (G.OBJECT, G.NONE):
            file.write(json.dumps({"expression_id": f"m/v/{k}_{g}"} | line) + "\\n")
def peak():  # not ru_maxrss: that of a child is at least its parent's at the start
    return next(int(row.split()[1]) for row in open("/proc/self/status") if row.startswith("VmHWM"))

before = peak()
entry = score_file(path, Pictures(), "m/v")
after = peak()
print(json.dumps([1024 * (after - before), path.stat().st_size, entry["n_expressions"]]))
"""


def growth(count, path):
    """Bytes that scoring `count` pictures adds to a fresh process, bytes of the file, expressions scored."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(count), str(path)],
        capture_output=True, text=True, timeout=800, check=True, cwd=ROOT,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.skipif(
    not STATUS.is_file() or "VmHWM" not in STATUS.read_text(), reason="Linux tells a process its own peak"
)
def test_memory_is_flat_over_ten_thousand_pictures(tmp_path):
    """Per picture its counters (464 bytes, and twice more while intervals are drawn) and its ids may stay, not
    its answers: these are 900 bytes each, their lines 4,000."""
    small, small_file, _ = growth(1_000, tmp_path / "small.jsonl")
    large, large_file, scored = growth(10_000, tmp_path / "large.jsonl")
    assert scored == 20_000
    assert large_file - small_file > 9_000 * 7_000
    assert large - small < 9_000 * 2_500 + 4_000_000, (large, small)
