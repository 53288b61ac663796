"""The readers on the developers' photographs: counts, areas and codes as recorded with pycocotools."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from uniresxx.cli.data.dump import lines_of
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.readers.refcocom import known_stems
from uniresxx.data.store.photos import photo_of
from uniresxx.imaging import masks
from uniresxx.imaging.geometry import box_iou
from uniresxx.types import Granularity

ROOT = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
pytestmark = pytest.mark.skipif(
    not (ROOT / "expected.json").is_file(), reason="the developers' photos are not here"
)
SPLITS = ("train", "val", "testA", "testB")
STEMS = [f"{split}_{kind}" for split in SPLITS for kind in ("part_only", "object_part")]
KINDS = {"single": Granularity.OBJECT, "multi": Granularity.MULTI, "none": Granularity.NONE}


@cache
def expected():
    return json.loads((ROOT / "expected.json").read_text())


@cache
def read(name):
    return load_benchmark(name, ROOT)


def pairs(name):
    return [(record, expression) for record in read(name) for expression in record.expressions]


def sha1(rle):
    return hashlib.sha1(rle["counts"].encode()).hexdigest()


@pytest.mark.parametrize("dataset", ["refcoco", "grefcoco"])
@pytest.mark.parametrize("split", SPLITS)
def test_refs_have_the_recorded_counts_areas_and_codes(dataset, split):
    counts = expected()[dataset]["splits"][split]
    refs = {int(k): v for k, v in expected()[dataset]["refs"].items() if v["split"] == split}
    found = pairs(f"{dataset}/{split}")
    assert len(read(f"{dataset}/{split}")) == counts["images"]
    assert len(found) == counts["sentences"]
    assert Counter(e.source["ref_id"] for _, e in found) == {k: v["sentences"] for k, v in refs.items()}
    assert len(refs) == counts["refs"]
    for record, expression in found:
        ref = refs[expression.source["ref_id"]]
        assert record.image_id == str(ref["image_id"])
        assert expression.area == ref.get("area", 0)
        assert expression.granularity is KINDS[ref.get("kind", "single")]
        assert (expression.rle is None) == (ref.get("kind") == "none")
        if expression.rle is not None:
            assert sha1(expression.rle) == ref["rle_sha1"]
            assert expression.rle["size"] == [record.height, record.width]
            assert masks.area(masks.validate(expression.rle)) == expression.area


@pytest.mark.parametrize("stem", STEMS)
def test_segments_have_the_recorded_counts_areas_and_codes(stem):
    counts, segments = expected()["refcocom"]["files"][stem], expected()["refcocom"]["segments"]
    found = pairs(f"refcocom/{stem}")
    assert len(read(f"refcocom/{stem}")) == counts["images"]
    assert len(found) == counts["sentences"]
    kinds = {e.source["segment_id"]: e.granularity for _, e in found}
    assert (
        Counter(kinds.values())
        == Counter({Granularity.PART: counts["parts"], Granularity.OBJECT: counts["objects"]})
        and len(kinds) == counts["records"]
    )
    for record, expression in found:
        segment = segments[expression.source["segment_id"]]
        assert record.image_id == str(segment["image_id"])
        assert str(expression.granularity) == segment["kind"]
        assert expression.area == segment["area"] and sha1(expression.rle) == segment["rle_sha1"]


def test_the_lists_are_globbed():
    assert known_stems(ROOT) == sorted(STEMS)


@pytest.mark.parametrize("split", SPLITS)
def test_mini_real_is_both_sets_merged_by_photo(split):
    merged = read(f"mini_real/{split}")
    parts = pairs(f"grefcoco/{split}") + pairs(f"refcocom/{split}_part_only")
    assert len({record.image_id for record in merged}) == len(merged)
    ids = [e.expression_id for record in merged for e in record.expressions]
    assert len(set(ids)) == len(ids) and set(ids) == {e.expression_id for _, e in parts}
    assert {e.granularity for record in merged for e in record.expressions} == set(Granularity)


def test_ids_and_totals():
    everything = [e for split in SPLITS for _, e in pairs(f"mini_real/{split}")]
    totals = expected()["totals"]["sentences"]
    assert Counter(e.granularity for e in everything) == {
        Granularity.OBJECT: totals["single"],
        Granularity.MULTI: totals["multi"],
        Granularity.NONE: totals["no_target"],
        Granularity.PART: totals["part"],
    }
    ids = {e.expression_id for e in everything}
    assert "grefcoco/val/29" in ids and "refcocom/val_part_only/900006_0" in ids
    assert pairs("refcoco/train")[0][1].expression_id == "refcoco/train/0"
    assert all(e.text and e.text == e.text.strip() for e in everything)


@pytest.mark.parametrize("split", SPLITS)
def test_photos_are_there_and_have_the_size_of_their_annotations(split):
    for record in read(f"mini_real/{split}"):
        info = expected()["images"][record.image_id]
        photo = photo_of(record)
        assert photo.shape == (info["height"], info["width"], 3) and photo.dtype == np.uint8
        assert Path(record.path).name == info["file_name"]  # not the ref's file_name with its _<n>


def test_dump_lines_hold_everything_once():
    lines = list(lines_of(read("mini_real/val")))
    assert [line["expression_id"] for line in lines] == [e.expression_id for _, e in pairs("mini_real/val")]
    for line in map(json.loads, map(json.dumps, lines)):
        assert set(line) == {"expression_id", "image", "granularity", "text", "no_target", "area", "rle"}
        assert line["no_target"] == (line["rle"] is None) == (line["granularity"] == "none")
        assert line["area"] == (0 if line["rle"] is None else masks.area(line["rle"]))


@pytest.mark.parametrize("dataset", ["refcoco", "grefcoco"])
def test_records_have_the_boxes_of_all_instances(dataset):
    """Not those of the referents alone; crowd regions are left out."""
    rows = json.loads((ROOT / dataset / "instances.json").read_text())["annotations"]
    counts = Counter(str(row["image_id"]) for row in rows if not row["iscrowd"])
    records = [record for split in SPLITS for record in read(f"{dataset}/{split}")]
    assert {r.image_id: len(r.boxes["object"]) for r in records} == {
        r.image_id: counts[r.image_id] for r in records
    }
    assert sum(counts.values()) == 125
    for record in records:
        boxes = record.boxes["object"]
        assert boxes.dtype == np.float32 and list(record.boxes) == ["object"]
        for e in record.expressions:
            if e.granularity == Granularity.OBJECT:
                overlap = box_iou(np.array([masks.box_of(e.rle)], float), boxes.astype(float))
                assert overlap.max() > 0.7
    merged = {record.image_id: record for record in read("mini_real/train")}
    for record in read("grefcoco/train"):
        np.testing.assert_array_equal(merged[record.image_id].boxes["object"], record.boxes["object"])
    assert not any(record.boxes for record in read("refcocom/train_part_only"))
