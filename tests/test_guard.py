"""The leak guard: ids under every naming scheme, exactly the right images removed, lists found or named."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.data.guard import (
    BENCHMARKS,
    Guard,
    HeldOut,
    coco_image_id,
    held_out,
    is_training,
    lines_of_report,
    record_coco_id,
    remove_held_out,
)
from uniresxx.errors import InputError
from uniresxx.types import Expression, Granularity, ImageRecord

NAMES = (
    "images/train2014/COCO_train2014_{:012d}.jpg",
    "COCO_train2014_{:012d}_3.jpg",  # RefCOCO's file_name
    "COCO_val2014_{:012d}.jpg",  # LVIS v0.5
    "train2017/{:012d}.jpg",  # PACO, MMR
    "val2017/{:012d}.jpg",
    "{:012d}.jpg",  # LLaVA
    "stuffthingmaps/train2017/{:012d}.png",  # COCO-Stuff
    "COCO_train2014_{:012d}.mat",  # COCO-Stuff 10K
    "http://images.cocodataset.org/train2017/{:012d}.jpg",  # LVIS v1 coco_url
    "{:d}",
)
NOT_COCO = (
    "VG_100K/2345.jpg",  # Visual Genome
    "images/saiapr_tc-12/11/images/11399.jpg",  # RefClef
    "ADE_train_00000001.jpg",
    "2008_000123.jpg",  # Pascal
    "n01440764_10026.JPEG",
    "sa_223750.jpg",
    "1000092795.jpg",  # Flickr30k
    "objects365_v1_00000001.jpg",
    "112233445566.jpg",
    "",
)


def removed_of(records, ids):
    removed = Counter()
    return list(remove_held_out(records, ids, removed)), dict(removed)


def counts(images=0, expressions=0, without_coco_id=0):
    return {"images": images, "expressions": expressions, "without_coco_id": without_coco_id}


def record(path=None, image_id="x", expressions=1, **source):
    asked = tuple(Expression(f"{path}/{index}", "a", Granularity.NONE, None) for index in range(expressions))
    return ImageRecord(image_id, 2, 3, asked, path=path, source=source)


@settings(deadline=None)
@given(st.integers(1, 999_999), st.sampled_from(NAMES))
def test_the_id_is_found_in_every_naming_scheme(number, name):
    assert coco_image_id(name.format(number)) == number
    assert coco_image_id(number) == number


@pytest.mark.parametrize(
    "name",
    [
        581857,
        "581857",
        "0581857",
        "000000581857",  # with leading zeros
        "COCO_train2014_000000581857.jpg",
        "COCO_train2014_000000581857_16.jpg",  # file_name of RefCOCO
        "coco/train2014/COCO_train2014_000000581857.jpg",  # image_path of jxu124
        "train2014/COCO_train2014_000000581857.jpg",
        "train2017/000000581857.jpg",  # the same photo in PACO, MMR
        "000000581857.jpg",  # LLaVA
        "http://images.cocodataset.org/train2017/000000581857.jpg",  # LVIS v1
        "http://images.cocodataset.org/val2017/000000581857.jpg?size=640",
        "COCO_val2014_000000581857.jpg",  # LVIS v0.5
        "annotations/train2017/000000581857.png",  # COCO-Stuff
        "COCO_train2014_000000581857.mat",  # COCO-Stuff 10K
        "images\\train2014\\COCO_train2014_000000581857.jpg",
    ],
)
def test_spellings_of_one_photo(name):
    assert coco_image_id(name) == 581857
    if isinstance(name, str):
        kept, removed = removed_of([record(name if "." in name else None, name)], frozenset({581857}))
        assert kept == [] and removed["images"] == 1


@pytest.mark.parametrize("name", NOT_COCO)
def test_other_names_have_no_id(name):
    assert coco_image_id(name) is None


def test_the_photo_name_comes_before_the_data_set_s_number():
    assert record_coco_id(record("a/train2017/000000000009.jpg", "123")) == 9
    assert record_coco_id(record("VG_100K/9.jpg", "9")) is None
    assert record_coco_id(record("VG_100K/9.jpg", "9", coco_id=77)) == 77
    assert record_coco_id(record(None, "9")) == 9
    assert record_coco_id(record(None, "scenes/train/9")) is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from(NAMES[:-1]), st.integers(0, 3))), st.data())
def test_exactly_the_held_out_images_are_removed(images, data):
    ids = data.draw(st.frozensets(st.integers(1, 30)))
    records = [record(name.format(number), expressions=count) for number, name, count in images]
    kept, removed = removed_of(records, ids)
    assert kept == [item for item, image in zip(records, images, strict=True) if image[0] not in ids]
    assert removed["images"] == len(records) - len(kept)
    assert removed["expressions"] == sum(count for number, _, count in images if number in ids)
    assert removed_of(kept, ids)[1] == counts()


@pytest.mark.parametrize(
    ("split", "learned"),
    [
        ("train", True), ("train_part_only", True), ("trainval", True), ("instruct", True),
        ("val", False), ("testA", False), ("testB_object_part", False), ("validation", False),
        ("minival", False), ("refcoco_unc_val", False), ("refcoco_google_test", False),
        ("refcoco_unc_train", True), ("latest", True),
    ],
)  # fmt: skip
def test_splits_that_are_learned_from(split, learned):
    assert is_training(split) is learned


def benchmarks_root(root, without=()):
    """Id lists of every benchmark: image 10*k + 1 is in train, + 2 in val, + 3 in a test split."""
    lists = {
        "refcoco": "refcoco/refs(unc).json",
        "refcoco+": "refcoco+/refs(unc).json",
        "refcocog_umd": "refcocog/refs(umd).json",
        "grefcoco": "grefcoco/grefs(unc).json",
    }
    for place, (name, path) in enumerate(lists.items()):
        if name not in without:
            refs = [
                {"split": split, "image_id": 10 * place + at}
                for at, split in enumerate(("train", "val", "testB"), 1)
            ]
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(json.dumps(refs))
    folder = root / "Refcocom" / "annotations"
    for stem, number in (("train_part_only", 41), ("val_part_only", 42), ("testA_object_part", 43)):
        if "refcocom" not in without:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{stem}.json").write_text(
                json.dumps([{"img_name": f"COCO_train2014_{number:012d}.jpg"}])
            )
    return root


def test_val_and_test_of_every_benchmark_are_held_out(tmp_path):
    held = held_out(benchmarks_root(tmp_path))
    assert held.not_found == () and set(held.ids) == set(BENCHMARKS)
    assert held.all() == {10 * place + at for place in range(5) for at in (2, 3)}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_list_is_named_and_strict_refuses(tmp_path, name):
    root = benchmarks_root(tmp_path, without=(name,))
    assert held_out(root).not_found == (name,)
    with pytest.raises(InputError, match="found no id list of") as error:
        Guard.of("strict", root)
    assert f" {name} " in str(error.value)
    report = {**Guard.of("on", root).report(), "removed": {}}
    assert lines_of_report(report)[-1] == f"guard: warning: found no id list of {name}"


@pytest.mark.parametrize("spelling", ["refcocog_u", "RefCOCOg_umd"])  # the reader takes both
def test_lists_in_the_cris_layout_are_found(tmp_path, spelling):
    folder = tmp_path / "anns" / spelling
    folder.mkdir(parents=True)
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        (folder / f"{split}.json").write_text(json.dumps([{"img_name": f"COCO_train2014_{number:012d}.jpg"}]))
    assert held_out(tmp_path).ids == {"refcocog_umd": frozenset({2, 3})}


def test_a_split_without_its_list_is_named_and_strict_refuses(tmp_path):
    root = benchmarks_root(tmp_path, without=("refcoco",))
    folder = root / "datasets" / "anns" / "refcoco"
    folder.mkdir(parents=True)
    for split, number in (("val", 2), ("testB", 3)):
        (folder / f"{split}.json").write_text(json.dumps([{"img_name": f"COCO_train2014_{number:012d}.jpg"}]))
    held = held_out(root)
    assert held.ids["refcoco"] == {2, 3} and held.not_found == ("refcoco (testA)",)
    with pytest.raises(InputError, match=r"no id list of refcoco \(testA\)"):
        Guard.of("strict", root)
    (folder / "testA.json").write_text("[]")
    assert held_out(root).not_found == ()


def test_modes(tmp_path):
    root = benchmarks_root(tmp_path)
    records = [record(f"train2017/{number:012d}.jpg") for number in range(1, 50)]
    for mode in ("on", "strict"):
        kept, removed = Guard.of(mode, root).apply("train", records)
        assert len(kept) == 39 and removed == counts(10, 10)
        assert Guard.of(mode, root).apply("val", records)[0] == records  # benchmarks stay whole
    off = Guard.of("published_data", root)
    assert off.apply("train", records)[0] == records
    assert "published_data" in lines_of_report({**off.report(), "removed": {}})[0]
    with pytest.raises(InputError, match="known: on, strict, published_data"):
        Guard.of("off", root)


def test_a_list_that_cannot_be_read_is_no_missing_list(tmp_path):
    (benchmarks_root(tmp_path) / "refcoco" / "refs(unc).json").write_text("[{]")
    with pytest.raises(InputError, match="no readable JSON"):
        Guard.of("on", tmp_path)


def test_images_without_an_id_are_counted():
    kept, removed = removed_of([record("VG_100K/7.jpg", "7"), record("000000000007.jpg")], frozenset({7}))
    assert len(kept) == 1 and removed == counts(1, 1, 1)
    report = {"mode": "on", "benchmarks": {}, "not_found": [], "removed": {"vg/train": removed}}
    assert lines_of_report(report)[1].endswith("1 images have no COCO id")


def test_nothing_held_is_empty():
    assert HeldOut().all() == frozenset()
