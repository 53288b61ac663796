"""Readers on small roots made here: pickles that try things, fields that lie, folders in any spelling."""

from __future__ import annotations

import json
import logging
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uniresxx.cli import main as program
from uniresxx.data.catalog import known_benchmarks, load_benchmark, merge_records
from uniresxx.data.readers.files import load_json, load_pickle, load_records
from uniresxx.data.readers.grefcoco import read_grefcoco
from uniresxx.data.readers.refcoco import read_refcoco
from uniresxx.data.readers.refcocom import read_refcocom
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import Granularity, ImageRecord

NAME = "COCO_train2014_000000000007.jpg"
BOX = [2, 2, 8, 2, 8, 8, 2, 8]  # 36 pixels
NEXT = [10, 2, 14, 2, 14, 8, 10, 8]  # 24 pixels


def run_data(words):
    return program(["data", *words])


def instances(**changes):
    content = {
        "images": [{"id": 7, "file_name": NAME, "height": 20, "width": 30}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 1.0, "segmentation": [BOX]},
            {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 1.0, "segmentation": [NEXT]},
            {
                "id": 3,
                "image_id": 7,
                "category_id": 1,
                "iscrowd": 1,
                "segmentation": {"size": [20, 30], "counts": [0, 400, 200]},
            },
            {"id": 4, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": []},
            {"id": 5, "image_id": 8, "category_id": 1, "iscrowd": 0, "segmentation": [BOX]},
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }
    return content | changes


def ref(ann_id=1, sent_id=11, sent="the man", **changes):
    record = {
        "ref_id": 5,
        "ann_id": ann_id,
        "image_id": 7,
        "file_name": "COCO_train2014_000000000007_3.jpg",
        "split": "val",
        "sent_ids": [sent_id],
        "sentences": [{"sent": sent, "raw": f"{sent}!", "sent_id": sent_id, "tokens": sent.split()}],
    }
    return record | changes


def root_with(tmp_path, refs, folder="refcoco", file="refs(unc).json", content=None):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "instances.json").write_text(json.dumps(content or instances()))
    path = tmp_path / folder / file
    path.write_bytes(pickle.dumps(refs, 0) if file.endswith(".p") else json.dumps(refs).encode())
    return tmp_path


def expressions(records):
    return [expression for record in records for expression in record.expressions]


# ---- pickles


class Call:
    """Pickles as a call of os.system."""

    def __reduce__(self):
        return os.system, ("exit 3",)


@pytest.mark.parametrize("protocol", range(6))
def test_no_global_is_ever_looked_up(tmp_path, protocol):
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([{"a": 1}, {"b": Call()}], protocol))
    with pytest.raises(InputError, match=r"(posix|nt|os)\.system"):
        load_pickle(path)


@pytest.mark.parametrize("value", [np.int64(3), set, Granularity.PART])
def test_classes_are_refused_too(tmp_path, value):
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([{"a": value}], 2))
    with pytest.raises(InputError, match=r"global .* as JSON"):
        load_pickle(path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(value=PLAIN, protocol=st.integers(0, 5))
def test_plain_data_comes_back(tmp_path_factory, value, protocol):
    path = tmp_path_factory.mktemp("p") / "x.p"
    path.write_bytes(pickle.dumps(value, protocol))
    assert load_pickle(path) == value


@settings(deadline=None, max_examples=100)
@given(
    content=st.binary(max_size=60) | st.binary(max_size=20).map(lambda tail: b"(lp1\n(dp2\nS'a'\np3\n" + tail)
)
def test_garbage_raises_input_error_only(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("p") / "x.p"
    path.write_bytes(content)
    for load in (load_json, load_records):
        try:
            load(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_python_2_strings(tmp_path):
    path = tmp_path / "x.p"
    path.write_bytes(
        b"(dp0\nS'sent'\np1\nS'caf\\xc3\\xa9'\np2\nsS'old'\np3\nS'caf\\xe9'\np4\nsVu\\u00e9\nI5\ns."
    )
    assert load_pickle(path) == {"sent": "café", "old": "café", "ué": 5}


def test_size_is_checked_before_reading(tmp_path):
    path = tmp_path / "x.p"
    path.write_bytes(pickle.dumps(["x" * 1000]))
    with pytest.raises(InputError, match="cap of 100"):
        load_pickle(path, max_bytes=100)
    with pytest.raises(InputError, match="cap of 100"):
        load_json(path, max_bytes=100)
    with pytest.raises(InputError, match="no such file"):
        load_pickle(tmp_path / "none.p")


# ---- RefCOCO


@pytest.mark.parametrize("file", ["refs(unc).p", "refs(unc).json"])
def test_pickle_and_json_give_the_same_records(tmp_path, file):
    (record,) = read_refcoco(root_with(tmp_path, [ref(), ref(2, 12, " the dog ")], file=file), "val")
    assert (record.image_id, record.height, record.width) == ("7", 20, 30)
    assert record.path == str(tmp_path / "images" / "train2014" / NAME)
    first, second = record.expressions
    assert (first.expression_id, first.text, first.area) == ("refcoco/val/11", "the man", 36)
    assert (second.expression_id, second.text, second.area) == ("refcoco/val/12", "the dog", 24)
    assert second.source["raw"] == " the dog !" and first.granularity is Granularity.OBJECT


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("refcoco+", "refcoco+", "refs(unc).json"),
        ("refcoco+", "RefCOCOplus", "refs(unc).p"),
        ("refcocog_umd", "refcocog", "refs(umd).p"),
        ("refcocog_google", "RefCOCOg", "refs(google).p"),
        ("refcoco", "refer_seg/refcoco", "refs(unc).p"),
    ],
)
def test_folder_spellings(tmp_path, name, folder, file):
    (expression,) = expressions(load_benchmark(f"{name}/val", root_with(tmp_path, [ref()], folder, file)))
    assert expression.expression_id == f"{name}/val/11"


@pytest.mark.parametrize("folder", ["images/train2014", "images/mscoco/images/train2014"])
@pytest.mark.parametrize("other", [None, "images/train2014", "images/mscoco/images/train2014"])
def test_both_photo_layouts(tmp_path, folder, other):
    root = root_with(tmp_path, [ref()])
    if other:
        (root / other).mkdir(parents=True)
    (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(root / folder / NAME)
    assert read_refcoco(root, "val")[0].path == str(root / folder / NAME)


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "a\0b", "..\\x"])
def test_photo_names_stay_in_their_folder(tmp_path, name):
    content = instances(images=[{"id": 7, "file_name": name, "height": 20, "width": 30}])
    with pytest.raises(InputError, match="photo name"):
        read_refcoco(root_with(tmp_path, [ref()], content=content), "val")


def without(record, name):
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (without(ref(), "ann_id"), ["ann_id", "record 0"]),
        (without(ref(), "image_id"), ["image_id", "record 0"]),
        (without(ref(), "split"), ["split", "record 0"]),
        (without(ref(), "sentences"), ["sentences", "record 0"]),
        (ref(ann_id=99), ["99", "instances.json"]),
        (ref(ann_id=5), ["5", "image 8"]),
        (ref(ann_id=4), ["ann 4", "no pixel"]),
        (ref(ann_id=3), ["ann 3", "crowd"]),
        (ref(ann_id=[1]), ["ann_id", "[1]"]),
        (ref(image_id=70), ["70"]),
        (ref(image_id=float("nan")), ["image_id", "nan"]),
        (ref(sentences="the man"), ["sentences", "str"]),
        (ref(sentences=[{"raw": "x"}]), ["sent", "sentence 0"]),
        (ref(sentences=[{"sent": 3, "sent_id": 1}]), ["text"]),
        (ref(sentences=[{"sent": "x"}]), ["sent_id"]),
        (ref(split="train"), ["'val'", "train"]),
        (ref(sent="   ", sentences=[{"sent": "  ", "sent_id": 1}]), ["blank"]),
    ],
)
def test_wrong_records_are_refused_by_name(tmp_path, record, words):
    with pytest.raises(InputError) as caught:
        read_refcoco(root_with(tmp_path, [record]), "val")
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"images": []},
        {"images": {}, "annotations": []},
        instances(images=[{"id": 7, "file_name": NAME, "height": 20}]),
        instances(images=[{"id": 7, "file_name": NAME, "height": -1, "width": 30}]),
        instances(images=[{"id": 7, "file_name": NAME, "height": 10**6, "width": 10**6}]),
        instances(annotations=[{"image_id": 7}]),
        instances(annotations=[{"id": 1, "image_id": 7, "segmentation": {"size": [30, 20], "counts": "x"}}]),
        instances(annotations=[{"id": 1, "image_id": 7, "segmentation": "rle"}]),
        instances(annotations=[{"id": 1, "image_id": 7, "segmentation": [box]} for box in (BOX, NEXT)]),
    ],
)
def test_broken_instances_are_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"instances\.json"):
        read_refcoco(root_with(tmp_path, [ref()], content=content or [1]), "val")


def test_left_out_is_reported_and_the_rest_is_read(tmp_path, caplog):
    root = root_with(
        tmp_path, [ref(3, 11), ref(1, 12), ref(2, 13, sent="", sentences=[{"sent": "", "sent_id": 13}])]
    )
    with caplog.at_level(logging.WARNING, logger="uniresxx.data"):
        records = read_refcoco(root, "val")
    assert [e.expression_id for e in expressions(records)] == ["refcoco/val/12"]
    assert "left out 2" in caplog.text and "crowd" in caplog.text
    assert len(records[0].source["left_out"]) == 2


def test_a_blank_sentence_falls_back_on_raw_and_repeated_ids_stay_apart(tmp_path):
    blank = ref(2, 11, sentences=[{"sent": " ", "raw": " The Dog ", "sent_id": 11}])
    found = expressions(read_refcoco(root_with(tmp_path, [ref(), blank]), "val"))
    assert [(e.expression_id, e.text) for e in found] == [
        ("refcoco/val/11", "the man"),
        ("refcoco/val/11#2", "The Dog"),
    ]


# ---- gRefCOCO


@pytest.mark.parametrize("file", ["grefs(unc).p", "grefs(unc).json"])
@pytest.mark.parametrize(
    ("ann_id", "granularity", "area"),
    [
        ([1], "object", 36),
        (1, "object", 36),
        ([1, 1], "object", 36),
        ([1, 2], "multi", 60),
        ([1, 3], "object", 36),
        ([2, 3, 1], "multi", 60),
        ([-1], "none", 0),
        (-1, "none", 0),
        ([], "none", 0),
    ],
)
def test_targets(tmp_path, file, ann_id, granularity, area):
    root = root_with(tmp_path, [ref(ann_id, no_target=ann_id == [-1])], "grefcoco", file)
    (expression,) = expressions(read_grefcoco(root, "val"))
    assert (str(expression.granularity), expression.area) == (granularity, area)
    assert (expression.rle is None) == (expression.instances is None) == (granularity == "none")
    assert sum(map(masks.area, expression.instances or ())) == area  # these two targets do not overlap
    assert len(expression.instances or ()) == {"none": 0, "object": 1, "multi": 2}[granularity]
    assert expression.expression_id == "grefcoco/val/11"


def test_overlapping_targets_are_united(tmp_path):
    content = instances()
    content["annotations"][1]["segmentation"] = [BOX]
    (expression,) = expressions(
        read_grefcoco(root_with(tmp_path, [ref([1, 2])], "grefcoco", "grefs(unc).json", content), "val")
    )
    assert expression.area == 36 and expression.granularity is Granularity.MULTI


@pytest.mark.parametrize("ann_id", [[3], [1, 99], [-1, 1], [4], [1, 4], ["x"], None])
def test_doubtful_targets_are_refused(tmp_path, ann_id):
    with pytest.raises(InputError):
        read_grefcoco(root_with(tmp_path, [ref(ann_id)], "grefcoco", "grefs(unc).json"), "val")


# ---- RefCOCOm


def write_mask(path, columns=slice(2, 6), value=255, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, dtype=np.uint8)
    mask[3:7, columns] = value
    Image.fromarray(mask).save(path)


def segment(segment_id, sents=("the wheel",), **changes):
    return {"img_name": NAME, "segment_id": segment_id, "cat": 1, "sentences": list(sents)} | changes


def parts_root(tmp_path, lists, lists_folder="refcocom", masks_folder="refcocom"):
    (tmp_path / lists_folder / "annotations").mkdir(parents=True)
    for name, records in lists.items():
        (tmp_path / lists_folder / "annotations" / f"{name}.json").write_text(json.dumps(records))
    for segment_id in ("1", "2", "900001"):
        write_mask(tmp_path / masks_folder / "masks" / f"{segment_id}.png")
    return tmp_path


def test_strings_dicts_and_both_spellings(tmp_path):
    lists = {
        "val_part_only": [
            segment(1, ["a Wheel ", "the tyre"]),
            segment("2", [{"sent": "a door", "idx": 4, "sent_id": 9}]),
        ]
    }
    root = parts_root(tmp_path, lists, "refer_seg/RefCOCOm", "refer_seg/Refcocom")
    (record,) = load_benchmark("refcocom/val_part_only", root)
    assert record.image_id == "7" and (record.height, record.width) == (20, 30)
    assert [(e.expression_id, e.text) for e in record.expressions] == [
        ("refcocom/val_part_only/1_0", "a Wheel"),
        ("refcocom/val_part_only/1_1", "the tyre"),
        ("refcocom/val_part_only/2_4", "a door"),
    ]
    assert {(e.granularity, e.area) for e in record.expressions} == {(Granularity.PART, 16)}


def test_the_part_list_beside_shows_which_segments_are_parts(tmp_path):
    lists = {
        "refcocom_testA_part_only": [segment("900001")],
        "testA_object_part": [segment(900001), segment(1)],
    }
    found = expressions(read_refcocom(parts_root(tmp_path, lists), "testA_object_part"))
    assert [e.granularity for e in found] == [Granularity.PART, Granularity.OBJECT]


@pytest.mark.parametrize(
    ("lists", "word"),
    [
        ({"val_object_part": [segment(1)]}, "val_part_only"),
        ({"val_object_part": [segment(1)], "val_part_only": [segment(2)]}, "nothing shows which"),
        ({"testB_part_only": [segment(1)]}, "testB_part_only"),
    ],
)
def test_an_object_list_without_its_part_list_is_refused(tmp_path, lists, word):
    with pytest.raises(InputError, match=word):
        read_refcocom(parts_root(tmp_path, lists), "val_object_part")


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (segment(77), "no mask 77.png"),
        (segment("../1"), "segment_id"),
        (segment(None), "segment_id"),
        (segment(1, img_name="../x.jpg"), "photo name"),
        (without(segment(1), "segment_id"), "segment_id"),
        (without(segment(1), "sentences"), "sentences"),
        (segment(3), "no pixel"),
    ],
)
def test_broken_segments_are_refused(tmp_path, record, word):
    root = parts_root(tmp_path, {"val_part_only": [record]})
    write_mask(root / "refcocom" / "masks" / "3.png", value=0)
    with pytest.raises(InputError, match=word):
        read_refcocom(root, "val_part_only")


@pytest.mark.parametrize("value", [1, 127, 253, 254])
def test_every_value_above_zero_is_foreground(tmp_path, value):
    root = parts_root(tmp_path, {"val_part_only": [segment(1)]})
    write_mask(root / "refcocom" / "masks" / "1.png", value=value)
    (expression,) = expressions(read_refcocom(root, "val_part_only"))
    assert expression.area == 16 == masks.area(expression.rle)


def test_masks_of_one_photo_must_agree_on_its_size(tmp_path):
    root = parts_root(tmp_path, {"val_part_only": [segment(1), segment(2)]})
    write_mask(root / "refcocom" / "masks" / "2.png", size=(20, 31))
    with pytest.raises(InputError, match=r"20 x 31 .* 20 x 30"):
        read_refcocom(root, "val_part_only")


# ---- names and the command line


@pytest.mark.parametrize("name", ["", "nothing/val", "/val"])
def test_unknown_names_list_the_known(tmp_path, name):
    with pytest.raises(InputError, match="unknown benchmark") as caught:
        load_benchmark(name, tmp_path)
    listed = str(caught.value).partition("known: ")[2].split(", ")
    named = list(dict.fromkeys(item.partition("/")[0] for item in known_benchmarks()))
    assert listed == [*named, "refer:FOLDER", "cris:FOLDER", "jsonl:FOLDER"]


@pytest.mark.parametrize("name", ["refcoco", "scenes"])
def test_a_name_without_its_split_lists_the_splits(tmp_path, name):
    with pytest.raises(InputError, match="needs a split") as caught:
        load_benchmark(name, tmp_path)
    listed = str(caught.value).partition(": ")[2].split(", ")
    assert listed == [item for item in known_benchmarks() if item.startswith(f"{name}/")]


def test_missing_folders_say_what_to_do(tmp_path):
    for data in (None, tmp_path / "none"):
        with pytest.raises(InputError, match="--data DIR"):
            load_benchmark("refcoco/val", data)
    with pytest.raises(InputError, match=r"refs\(unc\)\.p"):
        load_benchmark("refcoco/val", tmp_path)


def test_merging_refuses_two_sizes():
    with pytest.raises(InputError, match=r"2 x 3 .* 3 x 2"):
        merge_records([ImageRecord("1", 2, 3, ())], [ImageRecord("1", 3, 2, ())])


def test_dump_and_inspect_print_what_was_read(tmp_path, capsys):
    root = root_with(tmp_path, [ref([1, 2]), ref([-1], 12, "the cat")], "grefcoco", "grefs(unc).json")
    assert run_data(["dump", "grefcoco/val", "--data", str(root)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["granularity"], line["area"], line["no_target"]) for line in lines] == [
        ("multi", 60, False),
        ("none", 0, True),
    ]
    assert run_data(["inspect", "grefcoco", "--data", str(root)]) == 0
    shown = capsys.readouterr()
    assert "grefcoco/val" in shown.out and "grefcoco/testA" in shown.err


@pytest.mark.parametrize(
    "words",
    [["dump", "nothing/val"], ["dump", "refcoco/val"], ["inspect", "nothing"], ["frobnicate", "x"], []],
)
def test_wrong_input_is_one_line_and_exit_two(words, capsys):
    assert run_data(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.strip().splitlines()) == 1
