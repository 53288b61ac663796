"""Composed part expressions: what is joined, merged, refused and counted, on cases made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniresxx.cli import main
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.compose import DEFINED_SHARE, MIN_IOU, Parent, compose
from uniresxx.data.mixture.open import open_mixture
from uniresxx.data.mixture.parts import MixturePart
from uniresxx.data.readers.collector import Collector, Photo
from uniresxx.data.readers.densepose import PARTS
from uniresxx.data.readers.instances import Instances
from uniresxx.data.readers.part_names import definition
from uniresxx.data.readers.part_objects import PartImage, PartObject
from uniresxx.data.store.preparation import Preparation
from uniresxx.data.store.write import write_store
from uniresxx.errors import NotThereError
from uniresxx.imaging import masks
from uniresxx.types import Expression, Granularity, ImageRecord

MINI_REAL = Path(__file__).resolve().parents[2] / "shared" / "mini_real"
H, W = 40, 60
LEFT, RIGHT = (2, 2, 22, 30), (32, 2, 52, 30)


def rect(*boxes):
    mask = np.zeros((H, W), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def coded(mask):
    return {"size": [H, W], "counts": masks.encode(mask)["counts"]}


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def ann(number, category, mask, **more):
    return {"id": number, "image_id": 9, "category_id": category, "bbox": [1, 1, 2, 2], "iscrowd": 0,
            "segmentation": coded(mask), **more}  # fmt: skip


def refer(root, objects, refs, dataset="refcoco", split_by="unc", names=("person", "car", "dog")):
    """A set of the RefCOCO family with one photo: objects {ann id: (category, mask, crowd)}, refs {ann id: texts}."""
    save(
        root / dataset / "instances.json",
        {
            "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": H, "width": W}],
            "annotations": [
                ann(number, names.index(name) + 1, mask, iscrowd=int(bool(crowd)))
                for number, (name, mask, *crowd) in objects.items()
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        },
    )
    listed = [
        {
            "ref_id": number,
            "ann_id": number,
            "image_id": 9,
            "split": "train",
            "sentences": [{"sent": s, "raw": s, "sent_id": 100 * number + i} for i, s in enumerate(texts)],
        }
        for number, texts in refs.items()
    ]
    save(root / dataset / f"refs({split_by}).json", listed)


def paco(root, objects, not_exhaustive=()):
    """PACO's train list with one photo: objects [(category, mask, {part: masks})]."""
    names, anns = [], []

    def category(name):
        if name not in names:
            names.append(name)
        return names.index(name) + 1

    for name, mask, parts in objects:
        number = len(anns) + 1
        anns.append(ann(number, category(name), mask, obj_ann_id=number))
        for part, pieces in parts:
            anns.append(ann(len(anns) + 1, category(f"{name}:{part}"), pieces, obj_ann_id=number))
    content = {
        "images": [
            {"id": 9, "file_name": "train2017/000000000009.jpg", "height": H, "width": W,
             "not_exhaustive_category_ids": [category(name) for name in not_exhaustive]}
        ],
        "annotations": anns,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }  # fmt: skip
    save(root / "paco" / "annotations" / "paco_lvis_v1_train.json", content)


def composed(root):
    """text -> (mask, source) of the composed expressions, definitions turned back into names; and the counts."""
    records = load_benchmark("composed_parts/train", root)
    found = {}
    for record in records:
        for item in record.expressions:
            assert str(item.granularity) == "part"
            text = item.text
            for meaning in (
                "rolls on the ground",
                "reaches from the shoulder to the wrist",
                "has fingers and grips things",
            ):
                if text.endswith(f" that {meaning}"):
                    parent = text.removeprefix("part of ").removesuffix(f" that {meaning}")
                    text = f"{item.source['part']} of {parent}"
            found[text] = (masks.decode(item.rle), item.source)
    return found, records[0].source["counts"]


def texts_and_masks(found):
    return {text: mask for text, (mask, _) in found.items()}


def same(found, expected):
    assert set(found) == set(expected)
    for text, mask in expected.items():
        assert np.array_equal(found[text], mask), text


WHEELS = rect((4, 26, 8, 30)), rect((16, 26, 20, 30))


def test_two_wheels_of_one_car_are_meant_together(tmp_path):
    refer(tmp_path, {1: ("car", rect(LEFT)), 2: ("car", rect(RIGHT))}, {1: ["left car"]})
    far = rect((34, 26, 38, 30))
    paco(
        tmp_path,
        [
            ("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0]), ("wheel", WHEELS[1])]),
            ("car_(automobile)", rect(RIGHT), [("wheel", far)]),
        ],
    )
    found, counts = composed(tmp_path)
    both = WHEELS[0] | WHEELS[1]
    # the right car has no sentence, and "the car" would be either: all of them together
    same(texts_and_masks(found), {"wheel of left car": both, "all wheels of the cars": both | far})
    assert counts["objects joined to a sentence"] == 1
    assert counts["expressions composed with a sentence"] == counts["expressions that name a category"] == 1


def test_left_and_right_upper_and_lower_arms_are_one_part(tmp_path):
    refer(tmp_path, {1: ("person", rect(LEFT))}, {1: ["left guy."]})
    drawn = [[] for _ in PARTS]
    quarter = np.zeros((256, 256), bool)
    for place, name in enumerate(("upper arm left", "lower arm left", "upper arm right", "left hand")):
        quarter[:] = False
        quarter[:, 64 * place : 64 * place + 64] = True
        drawn[PARTS.index(name)] = {"size": [256, 256], "counts": masks.encode(quarter)["counts"]}
    x0, y0, x1, y1 = LEFT
    person = ann(1, 1, rect(LEFT)) | {"bbox": [x0, y0, x1 - x0, y1 - y0], "dp_masks": drawn}
    image = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "height": H, "width": W}
    names = [{"id": 1, "name": "person"}]
    save(
        tmp_path / "densepose" / "densepose_train2014.json",
        {"images": [image], "annotations": [person], "categories": names},
    )
    found, _ = composed(tmp_path)
    same(
        texts_and_masks(found),
        {"arm of left guy": rect((2, 2, 17, 30)), "hand of left guy": rect((17, 2, 22, 30))},
    )
    assert found["arm of left guy"][1]["sentences"] == ["refcoco:100"]


def test_an_occluded_parent_is_not_joined(tmp_path):
    seen = (2, 2, 14, 30)  # 12 of 20 columns: IoU 0.6
    refer(tmp_path, {1: ("car", rect(seen))}, {1: ["the car behind"]})
    paco(tmp_path, [("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0])])])
    found, counts = composed(tmp_path)
    same(texts_and_masks(found), {"wheel of the car": WHEELS[0]})
    assert "objects joined to a sentence" not in counts


@pytest.mark.parametrize(("columns", "joined"), [(14, False), (15, True)])  # of 20: IoU 0.7 and 0.75
def test_masks_must_overlap_by_more_than_the_least_iou(tmp_path, columns, joined):
    assert MIN_IOU == 0.7
    refer(tmp_path, {1: ("car", rect((2, 2, 2 + columns, 30)))}, {1: ["that one"]})
    paco(tmp_path, [("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0])])])
    assert ("wheel of that one" in composed(tmp_path)[0]) is joined


def test_a_parent_with_several_sentences_gives_each(tmp_path):
    car = {1: ("car", rect(LEFT))}
    refer(tmp_path, car, {1: ["red car", "car"]})
    refer(tmp_path, car, {1: ["red car", "shiny one"]}, "refcoco+")
    paco(tmp_path, [("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0])])])
    found, counts = composed(tmp_path)
    same(texts_and_masks(found), {f"wheel of {s}": WHEELS[0] for s in ("red car", "car", "shiny one")})
    assert found["wheel of red car"][1]["sentences"] == ["refcoco:100", "refcoco+:100"]
    assert (
        found["wheel of red car"][1]["object"] == {"ann_id": 1} and found["wheel of red car"][1]["iou"] == 1
    )
    assert counts["sets of sentences that are not there (refcocog_umd)"] == 1


def test_a_sentence_of_two_objects_is_left_out(tmp_path):
    refer(tmp_path, {1: ("car", rect(LEFT)), 2: ("car", rect(RIGHT))}, {1: ["car"], 2: ["car"]})
    far = rect((34, 26, 38, 30))
    paco(
        tmp_path,
        [
            ("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0])]),
            ("car_(automobile)", rect(RIGHT), [("wheel", far)]),
        ],
    )
    with pytest.raises(ValueError, match="1 texts that would mean different parts"):
        composed(tmp_path)


def test_a_crowd_says_nothing_of_its_category(tmp_path):
    refer(tmp_path, {1: ("car", rect(LEFT)), 2: ("car", rect(RIGHT), True)}, {1: ["left car"]})
    paco(tmp_path, [("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0])])])
    assert set(composed(tmp_path)[0]) == {"wheel of left car"}
    refer(tmp_path, {2: ("car", rect(RIGHT), True), 3: ("dog", rect(RIGHT))}, {3: ["dog"]})
    with pytest.raises(ValueError, match="more of than was annotated"):
        composed(tmp_path)


def test_an_object_that_only_coco_annotated_makes_a_category_ambiguous(tmp_path):
    refer(tmp_path, {1: ("car", rect(RIGHT)), 2: ("car", rect((54, 2, 58, 8)))}, {1: ["right car"]})
    paco(tmp_path, [("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0])])])
    with pytest.raises(ValueError, match="more of than was annotated"):
        composed(tmp_path)


def test_a_category_that_is_not_exhaustive_says_nothing(tmp_path):
    refer(tmp_path, {1: ("dog", rect(RIGHT))}, {1: ["dog"]})
    paco(tmp_path, [("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0])])], ["car_(automobile)"])
    with pytest.raises(ValueError, match="more of than was annotated"):
        composed(tmp_path)


def test_a_part_beside_its_object_is_left_out(tmp_path):
    refer(tmp_path, {1: ("car", rect(LEFT))}, {1: ["left car"]})
    parts = [("wheel", WHEELS[0]), ("mirror", rect((20, 2, 30, 6)))]  # 2 of 10 columns on the car
    paco(tmp_path, [("car_(automobile)", rect(LEFT), parts)])
    found, counts = composed(tmp_path)
    assert set(found) == {"wheel of left car"} and counts["parts that do not lie on their object"] == 1


def test_the_share_of_definitions_is_kept():
    parent = Parent(
        1, masks.encode(rect(LEFT)), tuple((f"refcoco/train/{i}", f"car {i}") for i in range(2000))
    )
    item = PartObject("car", parent.rle, {"wheel": masks.encode(WHEELS[0])}, {"ann_id": 7})
    collector = Collector("x", Path(), "composed_parts/train")
    compose(collector, "paco", PartImage(Photo("9", Path("9.jpg"), (H, W)), (item,)), [parent])
    (record,) = collector.records()
    defined = [e for e in record.expressions if e.text.endswith(" that rolls on the ground")]
    assert len(defined) == record.source["counts"]["expressions with a definition of the part"]
    assert len(defined) / len(record.expressions) == pytest.approx(DEFINED_SHARE, abs=0.03)
    again = Collector("x", Path(), "composed_parts/train")
    compose(again, "paco", PartImage(Photo("9", Path("9.jpg"), (H, W)), (item,)), [parent])
    assert again.records() == [record]


def test_definitions_end_a_sentence_and_name_no_part():
    assert definition("mug", "handle") == definition("cup", "handle") is not None
    assert definition("car", "nothing") is None


# ---- the leak guard


def two_photos(root):
    refer(root, {1: ("car", rect(LEFT))}, {1: ["left car"]})
    paco(root, [("car_(automobile)", rect(LEFT), [("wheel", WHEELS[0])])])
    photo = root / "images" / "train2014" / "COCO_train2014_000000000009.jpg"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (W, H)).save(photo)


def hold_out(root):
    """The photo is in the val split of gRefCOCO."""
    save(root / "grefcoco" / "grefs(unc).json", [{"split": "val", "image_id": 9}])


def test_the_guard_runs_before_the_join(tmp_path):
    two_photos(tmp_path)
    hold_out(tmp_path)
    with pytest.raises(ValueError, match="1 photos of val and test splits removed before the join"):
        composed(tmp_path)


@pytest.mark.parametrize("mode", ["on", "strict", "published_data"])
def test_the_guard_runs_again_in_training_on_a_store(tmp_path, mode):
    two_photos(tmp_path / "then")
    out = tmp_path / "store"
    words = ["data", "prepare", "composed_parts", "--data", str(tmp_path / "then"), "--out", str(out)]
    assert main(words) == 0
    parts = (MixturePart(str(out)),)
    assert len(open_mixture(parts, 4, 0, data=tmp_path / "then").parts[0].records) == 1
    hold_out(tmp_path / "now")
    if mode == "published_data":
        assert len(open_mixture(parts, 4, 0, data=tmp_path / "now", guard=mode).parts[0].records) == 1
        return
    with pytest.raises(ValueError, match=r"holds no expression|knew every benchmark"):
        open_mixture(parts, 4, 0, data=tmp_path / "now", guard=mode)


def test_only_the_held_out_photos_of_a_store_are_left_out_and_reported(tmp_path):
    def record(number):
        ids = [f"x/train/{number}-{i}" for i in range(3)]
        asked = (
            Expression(ids[0], "it", Granularity.OBJECT, masks.encode(np.ones((H, W), bool)), H * W),
            *(Expression(native, "a bus", Granularity.NONE, None) for native in ids[1:]),
        )
        return ImageRecord(str(number), H, W, asked, path=f"/photos/train2017/{number:012d}.jpg")

    records = [record(number) for number in range(300)]  # more than one record batch
    write_store(
        tmp_path / "store", Preparation("x", {"val": lambda: (records, {}), "train": lambda: (records, {})})
    )
    hold_out(tmp_path)
    parts = (MixturePart(str(tmp_path / "store" / "train")),)
    [part] = open_mixture(parts, 4, 0, data=tmp_path).parts
    assert [record.image_id for record in part.records] == [str(n) for n in range(300) if n != 9]
    assert part.about["guard"]["removed"]["x/train, again in training"]["expressions"] == 3
    assert part.about["fingerprint"].endswith(" without 1 held-out images")
    [whole] = open_mixture(parts, 4, 0, data=tmp_path, guard="published_data").parts
    assert len(whole.records) == 300


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(NotThereError, match="refcoco or refcoco"):
        load_benchmark("composed_parts/train", tmp_path)
    refer(tmp_path, {1: ("car", rect(LEFT))}, {1: ["left car"]})
    with pytest.raises(NotThereError, match="paco or densepose"):
        load_benchmark("composed_parts/train", tmp_path)
    with pytest.raises(NotThereError, match="it has train"):
        load_benchmark("composed_parts/val", tmp_path)


# ---- real photographs


@pytest.mark.skipif(not MINI_REAL.is_dir(), reason="needs ../shared/mini_real")
def test_the_join_finds_the_parents_of_real_parts(tmp_path):
    """mini_real's parts, written as PACO would, are joined to the very annotation that they were cut from."""
    instances = Instances.load(MINI_REAL / "refcoco" / "instances.json")
    train = {
        record.image_id: {e.source["ann_id"] for e in record.expressions}
        for record in load_benchmark("refcoco/train", MINI_REAL)
    }
    cut = [row for row in json.loads((MINI_REAL / "refcocom" / "parts.json").read_text())
           if row["obj_ann_id"] in train.get(str(row["image_id"]), ())]  # fmt: skip
    (tmp_path / "refcoco").symlink_to(MINI_REAL / "refcoco")
    names, anns = {}, []
    for row in instances.annotations.values():
        if not row.get("iscrowd", 0):
            rle = instances.mask(row["id"], row["image_id"], "x")
            name = instances.categories[row["category_id"]]
            anns.append({"id": row["id"], "image_id": row["image_id"], "obj_ann_id": row["id"],
                         "category_id": names.setdefault(name, len(names)), "segmentation": dict(rle)})  # fmt: skip
    for row in cut:
        name = (
            f"{instances.categories[instances.annotations[row['obj_ann_id']]['category_id']]}:{row['part']}"
        )
        anns.append({"id": 10**7 + row["segment_id"], "image_id": row["image_id"], "obj_ann_id": row["obj_ann_id"],
                     "category_id": names.setdefault(name, len(names)),
                     "segmentation": row["segmentation"]})  # fmt: skip
    images = [
        {**row, "file_name": f"train2017/{number:012d}.jpg"} for number, row in instances.images.items()
    ]
    categories = [{"id": number, "name": name} for name, number in names.items()]
    content = {"images": images, "annotations": anns, "categories": categories}
    save(tmp_path / "paco" / "annotations" / "paco_lvis_v1_train.json", content)
    composed_records = load_benchmark("composed_parts/train", tmp_path)
    found = [e for record in composed_records for e in record.expressions if "sentences" in e.source]
    sentences = {
        e.expression_id.replace("/train/", ":"): (e.source["ann_id"], e.text)
        for record in load_benchmark("refcoco/train", MINI_REAL)
        for e in record.expressions
    }
    assert len(cut) == 23 and found
    joined = set()
    for item in found:
        for source in item.source["sentences"]:
            ann_id, text = sentences[source]
            assert item.source["object"]["ann_id"] == ann_id and text.rstrip(" .") in item.text
            joined.add((ann_id, item.source["part"]))
    wanted = {(row["obj_ann_id"], row["part"]) for row in cut}
    assert joined == wanted
    for row in cut:
        same_part = [e for e in found if e.source["object"]["ann_id"] == row["obj_ann_id"]
                     and e.source["part"] == row["part"]]  # fmt: skip
        assert all(masks.intersection_area(e.rle, row["segmentation"]) == row["area"] for e in same_part)
