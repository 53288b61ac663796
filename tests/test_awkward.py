"""The awkward cases of the developers' set: each loads exactly or is refused with a line that says why."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from uniresxx.cli import main as program
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.readers.instances import Instances
from uniresxx.data.store.photos import photo_of
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.decode import read_photo
from uniresxx.imaging.geometry import Letterbox
from uniresxx.text import clean_text

ROOT = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
LIST = ROOT / "awkward" / "expected.json"
CASES = json.loads(LIST.read_text()) if LIST.is_file() else []
pytestmark = pytest.mark.skipif(not CASES, reason="the developers' photos are not here")
LOADED = [case for case in CASES if case["expect"] == "load"]
REFUSED = [case for case in CASES if case["expect"] == "refuse"]
# what the line of a refusal must name
NAMED = {
    "03_ref_targets_crowd": ["900100204805", "crowd"],
    "07_pickle_forbidden_global": ["os.getcwd", "refs(unc).p"],
    "10_truncated_jpeg": ["COCO_train2014_000000111076.jpg"],
    "16_mask_size_mismatch": ["503 x 368", "500 x 375", "910016.png"],
    "18_ref_without_ann_id": ["ann_id", "record 1"],
    "19_annotation_without_segmentation": ["segmentation", "93606"],
    "20_cris_without_img_name": ["img_name", "record 0"],
    "21_unknown_ann_id": ["999999999", "record 1"],
}


def run_data(words):
    return program(["data", *words])


def read(case):
    split = "val_part_only" if case["dataset"] == "refcocom" else "val"
    return load_benchmark(f"{case['dataset']}/{split}", ROOT / case["root"])


def only(case):
    (record,) = read(case)
    return record


def case_of(name):
    return next((case for case in CASES if case["case"].startswith(name)), None)


def test_all_twenty_one_are_covered():
    assert len(CASES) == 21 and {case["case"] for case in REFUSED} == set(NAMED)


@pytest.mark.parametrize("case", LOADED, ids=lambda case: case["case"])
def test_loads_exactly(case):
    record = only(case)
    assert (record.height, record.width) == (case["height"], case["width"])
    assert photo_of(record).shape == (case["height"], case["width"], 3)
    assert record.expressions
    for expression in record.expressions:
        assert expression.area == case["area"]
        assert hashlib.sha1(expression.rle["counts"].encode()).hexdigest() == case["rle_sha1"]
        assert expression.text and expression.text == expression.text.strip()


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["case"])
def test_is_refused_by_name(case):
    with pytest.raises(InputError) as caught:
        for record in read(case):
            photo_of(record)
    message = str(caught.value)
    assert "\n" not in message
    for word in NAMED[case["case"]]:
        assert word in message, message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_the_store_gives_what_the_reader_gives(tmp_path, case):
    """What must load is the same behind `prepare`; what must be refused stops `prepare`, or `verify` lists it."""
    name = f"{case['dataset']}/{'val_part_only' if case['dataset'] == 'refcocom' else 'val'}"
    words = ["prepare", name, "--root", str(ROOT / case["root"]), "--out", str(tmp_path / "s")]
    prepared = run_data(words)
    if case["expect"] == "refuse":
        assert prepared == 2 or run_data(["verify", str(tmp_path / "s")]) == 1
        return
    assert prepared == 0 == run_data(["verify", str(tmp_path / "s")])
    (record,) = Store.open(tmp_path / "s")
    assert photo_of(record).shape == (case["height"], case["width"], 3)
    for expression in record.expressions:
        assert expression.area == case["area"]
        assert hashlib.sha1(expression.rle["counts"].encode()).hexdigest() == case["rle_sha1"]


def test_crowd_codes_of_both_spellings_decode_alike():
    case = case_of("02")
    instances = Instances.load(ROOT / case["root"] / "grefcoco" / "instances.json")
    image_id = int(only(case).image_id)
    for ann_id in case["crowd_ann_ids"]:
        rle = instances.mask(ann_id, image_id, "test")
        assert instances.is_crowd(ann_id, image_id, "test")
        assert masks.area(rle) == case["crowd"]["area"]
        assert hashlib.sha1(rle["counts"].encode()).hexdigest() == case["crowd"]["rle_sha1"]


def test_tiny_target_survives_every_training_frame():
    record = only(case_of("05"))
    mask = masks.decode(record.expressions[0].rle)
    for side in (64, 128, 336, 448, 1024):
        assert Letterbox.fit(record.height, record.width, side).mask(mask).any()


def test_text_survives_in_raw_and_is_stripped_for_the_model():
    case = case_of("06")
    found = only(case).expressions
    assert [e.source["raw"] for e in found] == case["raw"]
    assert [e.text for e in found] == [clean_text(text) for text in case["stripped"]]


@pytest.mark.parametrize("name", ["08", "09"])
def test_python_2_text_is_read_as_utf8(name):
    case = case_of(name)
    assert case["raw"] in [e.source["raw"] for e in only(case).expressions]


def test_colours_of_unusual_jpegs():
    photo = read_photo(ROOT / "images" / "train2014" / "COCO_train2014_000000111076.jpg").astype(int)
    grey = photo_of(only(case_of("12")))
    assert (grey == grey[..., :1]).all()
    cmyk = photo_of(only(case_of("13"))).astype(int)
    assert np.abs(cmyk - photo).mean() < 15
    turned = photo_of(only(case_of("11"))).astype(int)
    assert np.abs(turned - photo).mean() < 15
