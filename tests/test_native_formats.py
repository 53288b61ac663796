"""Every native format as its own tools write it, made here, read to exactly the known masks."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uniresxx.data.catalog import load_benchmark, splits_of
from uniresxx.data.published_counts import PUBLISHED, published_of
from uniresxx.data.readers.cris import read_cris
from uniresxx.data.readers.files import load_pickle
from uniresxx.data.readers.grefcoco import read_grefcoco
from uniresxx.data.readers.hub import LOSSY
from uniresxx.data.readers.psalm import read_psalm
from uniresxx.data.readers.refcoco import read_refcoco
from uniresxx.data.store.photos import encoded_photo
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import Granularity

ROOT = Path(__file__).resolve().parents[1]
NAME = "COCO_train2014_000000000007.jpg"
H, W = 20, 30
BOX = [2, 2, 8, 2, 8, 8, 2, 8]  # 36 pixels
OVER = [5, 5, 11, 5, 11, 11, 5, 11]  # 36 pixels, 9 of them also in BOX
FAR = [20, 2, 24, 2, 24, 8, 20, 8]  # 24 pixels
IMAGE = {"id": 7, "file_name": NAME, "height": H, "width": W}


def rect(*boxes):
    """Bool (y, x) with x0 y0 x1 y1 boxes filled: what the polygons above cover."""
    mask = np.zeros((H, W), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


FIRST = rect((2, 2, 8, 8))
BOTH = rect((2, 2, 8, 8), (5, 5, 11, 11))


def counts_of(mask):
    """Uncompressed run lengths of a mask, column by column, background first."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs


def coded(mask, kind):
    rle = masks.encode(mask)
    counts = {"list": counts_of(mask), "str": rle["counts"], "bytes": rle["counts"].encode()}[kind]
    return {"size": [H, W], "counts": counts}


def ann(ann_id, segmentation, **changes):
    row = {"id": ann_id, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 1.0, "bbox": [2, 2, 6, 6]}
    return row | {"segmentation": segmentation} | changes


def ref(ann_id=1, sent_id=11, sent="the man", **changes):
    sentence = {"sent": sent, "raw": sent.upper(), "sent_id": sent_id, "tokens": sent.split()}
    record = {"ref_id": 5, "ann_id": ann_id, "image_id": 7, "category_id": 1, "split": "val"}
    record |= {
        "file_name": "COCO_train2014_000000000007_3.jpg",
        "sent_ids": [sent_id],
        "sentences": [sentence],
    }
    return record | changes


# ---- Python-2 pickles: str is bytes there (S in protocol 0, U in protocol 2), other text is unicode


def python_2(value, protocol):
    """The bytes that Python 2's pickle writes for plain data (without its memo, which is optional)."""
    return (b"\x80\x02" if protocol == 2 else b"") + _python_2(value, protocol) + b"."


def _python_2(value, protocol):
    if value is None or isinstance(value, bool):
        return {True: b"I01\n", False: b"I00\n", None: b"N"}[value]
    if isinstance(value, int):
        return b"I%d\n" % value if protocol == 0 else b"J" + value.to_bytes(4, "little", signed=True)
    if isinstance(value, float):
        return b"F%r\n" % value
    if isinstance(value, bytes):
        return (
            b"S" + repr(value)[1:].encode() + b"\n"
            if protocol == 0
            else b"T" + len(value).to_bytes(4, "little") + value
        )
    if isinstance(value, str):
        if value.isascii():
            return _python_2(value.encode(), protocol)
        return b"V" + value.encode("raw_unicode_escape") + b"\n"
    if isinstance(value, list):
        return b"(l" + b"".join(_python_2(item, protocol) + b"a" for item in value)
    return b"(d" + b"".join(
        _python_2(key, protocol) + _python_2(item, protocol) + b"s" for key, item in value.items()
    )


def refer_root(tmp_path, refs, annotations, folder="refcoco", file="refs(unc).p", protocol=0, image=IMAGE):
    (tmp_path / folder).mkdir(parents=True)
    content = {"images": [image], "annotations": annotations, "categories": []}
    (tmp_path / folder / "instances.json").write_text(json.dumps(content))
    data = python_2(refs, protocol) if file.endswith(".p") else json.dumps(refs).encode()
    (tmp_path / folder / file).write_bytes(data)
    return tmp_path


def expressions(records):
    return [expression for record in records for expression in record.expressions]


def same(expression, mask):
    assert np.array_equal(masks.decode(expression.rle), mask)
    assert expression.area == int(mask.sum())


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize(
    "sent", ["the man", "café ☕ ".encode(), "caf\xe9 ".encode("latin-1"), "naïve ✓ ", " the left dog\n"]
)
def test_python_2_refs(tmp_path, protocol, sent):
    text = sent if isinstance(sent, str) else (sent.decode() if b"\xc3" in sent else sent.decode("latin-1"))
    record = ref(sentences=[{"sent": sent, "raw": "The Man ", "sent_id": 11, "tokens": []}])
    (found,) = expressions(
        read_refcoco(refer_root(tmp_path, [record], [ann(1, [BOX])], protocol=protocol), "val")
    )
    assert found.text == text.strip() and found.source["raw"] == "The Man "
    same(found, FIRST)


SEGMENTATIONS = [
    ([BOX], FIRST),
    ([BOX, OVER], BOTH),  # 63 pixels, not 72: where polygons overlap is 1, not 2
    ([BOX, BOX], FIRST),
    ([BOX, [1, 1], [1, 1, 5, 5]], FIRST),  # too few corners enclose nothing
    (BOX, FIRST),
    (coded(BOTH, "list"), BOTH),
    (coded(BOTH, "str"), BOTH),
    ([coded(FIRST, "str"), coded(rect((5, 5, 11, 11)), "list")], BOTH),
]


@pytest.mark.parametrize(("segmentation", "mask"), SEGMENTATIONS)
def test_every_segmentation_in_every_json(tmp_path, segmentation, mask):
    rows = [ann(1, segmentation)]
    psalm = [
        {"image": NAME, "image_info": IMAGE, "anns": rows, "instruction": ref()["sentences"], "new_img_id": 0}
    ]
    refer_root(tmp_path, [ref()], rows)
    (tmp_path / "refcoco" / "val_psalm.json").write_text(json.dumps(psalm))
    refer_root(tmp_path, [ref([1])], rows, "grefcoco", "grefs(unc).json")
    jxu(tmp_path, [jxu_row(segmentation)])
    for name in ("refcoco/val", "psalm_refcoco/val", "grefcoco/val", "jxu124_refcoco/val"):
        (found,) = expressions(load_benchmark(name, tmp_path))
        assert found.expression_id == f"{name}/11" and found.granularity is Granularity.OBJECT
        same(found, mask)


@pytest.mark.parametrize("segmentation", [[], [[]], [[1, 1, 5, 5]], coded(np.zeros((H, W), bool), "list")])
def test_truth_without_a_pixel_is_refused(tmp_path, segmentation):
    refer_root(tmp_path, [ref()], [ann(1, segmentation)])
    psalm_list(tmp_path, [psalm_record([ann(1, segmentation)])])
    jxu(tmp_path, [jxu_row(segmentation)])
    for name in ("refcoco/val", "psalm_refcoco/val", "jxu124_refcoco/val"):
        with pytest.raises(InputError, match="no pixel"):
            load_benchmark(name, tmp_path)


# ---- RefClef and the google split


@pytest.mark.parametrize("kind", ["list", "str"])
@pytest.mark.parametrize(
    ("name", "file"), [("refclef_unc", "refs(unc).p"), ("refclef_berkeley", "refs(berkeley).p")]
)
def test_refclef(tmp_path, kind, name, file):
    image = IMAGE | {"file_name": "7.jpg"}
    rows = [ann(1, [coded(FIRST, kind), coded(BOTH, kind)])]
    root = refer_root(tmp_path, [ref()], rows, "refclef", file, image=image)
    (record,) = load_benchmark(f"{name}/val", root)
    assert record.image_id == "saiapr_7" and record.path == str(root / "images" / "saiapr_tc-12" / "7.jpg")
    assert record.expressions[0].expression_id == f"{name}/val/11"
    same(record.expressions[0], BOTH)


def test_refclef_leaves_out_its_bad_photos(tmp_path):
    root = refer_root(tmp_path, [ref()], [ann(1, [BOX])], "refclef", image=IMAGE | {"file_name": "19579.jpg"})
    with pytest.raises(InputError, match=r"19579\.jpg is known to be bad"):
        load_benchmark("refclef_unc/val", root)


def test_refcoco_google_is_its_own_set(tmp_path):
    root = refer_root(tmp_path, [ref(split="test")], [ann(1, [BOX])], file="refs(google).p")
    (found,) = expressions(load_benchmark("refcoco_google/test", root))
    assert found.expression_id == "refcoco_google/test/11"
    assert splits_of("refclef_unc", None) == ["train", "val", "testA", "testB", "testC"]


# ---- CRIS


def png(values):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def jpeg(size=(W, H)):
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "JPEG")
    return stream.getvalue()


def summed(*rects):
    """CRIS's mask: summed layers times 255 in 8 bits, so 2 gives 254 and 3 gives 253."""
    return (sum(item.astype(np.uint8) for item in rects) * np.uint8(255)).astype(np.uint8)


THREE = summed(FIRST, rect((5, 5, 11, 11)), rect((5, 5, 9, 9)))


def cris_record(segment=3, sents=("the man ", "café")):
    sentences = [{"idx": i, "sent_id": 40 + i, "sent": sent} for i, sent in enumerate(sents)]
    head = {"bbox": [2, 2, 8, 8], "cat": 0, "segment_id": segment, "img_name": NAME}
    return head | {"sentences": sentences, "sentences_num": len(sentences)}


def cris_lists(tmp_path, records, folder="refcoco", values=THREE):
    base = tmp_path / "datasets"
    (base / "anns" / folder).mkdir(parents=True)
    (base / "masks" / folder).mkdir(parents=True)
    (base / "anns" / folder / "val.json").write_text(json.dumps(records))
    (base / "masks" / folder / "3.png").write_bytes(png(values))
    return tmp_path


def cris_value(**changes):
    head = {"img": jpeg(), "mask": png(THREE), "cat": 0, "seg_id": 3, "img_name": NAME}
    return head | {"num_sents": 2, "sents": ["the man ", "café"]} | changes


def cris_lmdb(tmp_path, values, folder="refcoco", subdir=False, count=None):
    path = tmp_path / "datasets" / "lmdb" / folder / "val.lmdb"
    path.parent.mkdir(parents=True)
    with (
        lmdb.open(str(path), subdir=subdir, map_size=2**22) as environment,
        environment.begin(write=True) as writer,
    ):
        for index, value in enumerate(values):
            writer.put(b"%d" % index, value if isinstance(value, bytes) else pickle.dumps(value, 5))
        keys = [b"%d" % index for index in range(len(values))]
        writer.put(b"__keys__", pickle.dumps(keys, 5))
        writer.put(b"__len__", pickle.dumps(len(keys) if count is None else count, 5))
    return tmp_path


def test_cris_masks_hold_254_and_253():
    assert set(np.unique(THREE)) == {0, 253, 254, 255}


@pytest.mark.parametrize("form", ["list", "lmdb file", "lmdb folder", "above datasets"])
def test_cris_gives_all_sentences(tmp_path, form):
    if form in ("list", "above datasets"):
        cris_lists(tmp_path, [cris_record()])
    else:
        cris_lmdb(tmp_path, [cris_value()], subdir=form == "lmdb folder")
    root = tmp_path / "datasets" if form == "above datasets" else tmp_path
    (record,) = load_benchmark("cris_refcoco/val", root)
    assert (record.image_id, record.height, record.width) == ("7", H, W)
    assert [(e.expression_id, e.text) for e in record.expressions] == [
        ("cris_refcoco/val/3_0", "the man"),
        ("cris_refcoco/val/3_1", "café"),
    ]
    for expression in record.expressions:
        same(expression, BOTH)
    assert (record.inside is not None) == (record.path is None) == form.startswith("lmdb")
    assert record.inside is None or encoded_photo(record.inside) == jpeg()


@pytest.mark.parametrize(("name", "folder"), [("refcocog_umd", "refcocog_u"), ("refcoco+", "refcoco+")])
def test_cris_folders(tmp_path, name, folder):
    found = expressions(load_benchmark(f"cris_{name}/val", cris_lists(tmp_path, [cris_record()], folder)))
    assert found[0].expression_id == f"cris_{name}/val/3_0"


class Call:
    def __reduce__(self):
        return print, ("never",)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (cris_value(mask=png(np.zeros((H, W), np.uint8))), "no pixel"),
        (cris_value(mask=b"\x89PNG"), "mask"),
        (cris_value(mask=png(np.ones((H, W + 1), np.uint8))), "20 x 31"),
        (cris_value(mask="png"), "mask must be the bytes"),
        (cris_value(img=None), "img"),
        (cris_value(sents="the man"), "sents"),
        (cris_value(num_sents=3), "num_sents is 3"),
        (cris_value(seg_id="../3"), "segment_id"),
        (cris_value(img_name="../3.jpg"), "photo name"),
        (cris_value(cat=Call()), "global builtins.print"),
        (cris_value(sents=["  ", ""]), "blank"),
        ([1], "must be a dict"),
        (b"", "no pickle"),
        (b"\x00\x00 pyarrow", "pyarrow.serialize"),
        (pickle.dumps(cris_value(), 5)[:-9], "no readable pickle"),
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "no readable pickle"),  # a terabyte of zeros
    ],
)
def test_bad_lmdb_values_are_refused(tmp_path, value, word):
    cris_lmdb(tmp_path, [value])
    with pytest.raises(InputError, match=word) as caught:
        read_cris(tmp_path, "val")
    assert "val.lmdb: " in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_lmdb_files_are_refused(tmp_path):
    cris_lmdb(tmp_path, [cris_value(img=jpeg() + bytes(200_000))], count=2)
    with pytest.raises(InputError, match="record 1 of 2 is missing"):
        read_cris(tmp_path, "val")
    path = tmp_path / "datasets" / "lmdb" / "refcoco" / "val.lmdb"
    whole = path.read_bytes()
    for cut in (whole[:100_000], whole[:4096], whole[:10], b"", b"x" * 9000):
        path.write_bytes(cut)
        with pytest.raises(InputError, match=r"val\.lmdb"):
            read_cris(tmp_path, "val")
    with pytest.raises(InputError, match=r"anns/refcoco/train\.json"):
        read_cris(tmp_path, "train")
    with pytest.raises(InputError, match="holds neither"):
        read_cris(tmp_path, "../val")


# ---- PSALM


def psalm_record(rows, sentences=None, **changes):
    sentences = ref()["sentences"] if sentences is None else sentences
    return {"image_info": IMAGE, "anns": rows, "instruction": sentences, "new_img_id": 0} | changes


def psalm_list(tmp_path, records, folder="refcoco", file="val_psalm.json"):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / file).write_text(json.dumps(records))
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "granularity", "mask"),
    [
        ([], "none", None),
        ([ann(1, [])], "none", None),
        ([ann(1, [BOX])], "object", FIRST),
        ([ann(1, [BOX]), ann(1, [BOX])], "object", FIRST),
        ([ann(1, [BOX]), ann(2, [OVER])], "multi", BOTH),
        ([ann(1, coded(FIRST, "str")), ann(2, coded(BOTH, "list"))], "multi", BOTH),
        ([ann(1, [BOX]), ann(2, [FAR], iscrowd=1)], "object", FIRST),
    ],
)
@pytest.mark.parametrize("file", ["val_psalm.json", "grefcoco_val.json"])
def test_psalm_targets(tmp_path, rows, granularity, mask, file):
    (found,) = expressions(
        load_benchmark("psalm_grefcoco/val", psalm_list(tmp_path, [psalm_record(rows)], "grefcoco", file))
    )
    assert str(found.granularity) == granularity and found.expression_id == "psalm_grefcoco/val/11"
    assert found.rle is None if mask is None else np.array_equal(masks.decode(found.rle), mask)


def test_psalm_reports_what_it_leaves_out(tmp_path):
    records = [
        psalm_record([ann(1, [BOX])], []),
        psalm_record([ann(1, [BOX], iscrowd=1)]),
        psalm_record([ann(1, [BOX])], [{"sent": " a  dog "}, {"sent": ""}], image_info=without(IMAGE, "id")),
    ]
    (record,) = read_psalm(psalm_list(tmp_path, records, "grefcoco"), "val", "grefcoco")
    assert record.image_id == "7" and len(record.source["left_out"]) == 3
    assert [(e.expression_id, e.text) for e in record.expressions] == [("psalm_grefcoco/val/2_0", "a dog")]


def without(record, name):
    return {key: value for key, value in record.items() if key != name}


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (psalm_record([]), "0 annotations"),
        (psalm_record([ann(1, [BOX]), ann(2, [BOX])]), "2 annotations"),
        (psalm_record("x"), "anns"),
        (psalm_record([ann(1, None)]), "segmentation"),
        (psalm_record([ann(1, [BOX])], "the man"), "sentences"),
        (psalm_record([ann(1, [BOX])], image_info=without(IMAGE, "height")), "height"),
        (psalm_record([ann(1, [BOX])], image_info=IMAGE | {"width": 0}), "no size"),
        (psalm_record([ann(1, [BOX])], image_info=IMAGE | {"file_name": "x" * 300 + ".jpg"}), "photo name"),
        (psalm_record([ann(1, [BOX])], [{"sent": "a", "sent_id": [1]}]), "sent_id"),
    ],
)
def test_bad_psalm_records_are_refused(tmp_path, record, word):
    with pytest.raises(InputError, match=word):
        read_psalm(psalm_list(tmp_path, [record]), "val")


# ---- Hub


def jxu_row(segmentation, **changes):
    row = ref(raw_anns=json.dumps(ann(1, segmentation)), raw_image_info=json.dumps(IMAGE))
    row |= {"bbox": [2.0, 2.0, 8.0, 8.0], "image_path": f"coco/train2014/{NAME}"}
    return row | changes


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def jxu(tmp_path, rows, split="validation"):
    write_parquet(tmp_path / "jxu124" / "refcoco" / "data" / f"{split}-00000-of-00001-ab.parquet", rows)
    return tmp_path


def test_jxu124_test_is_test_a(tmp_path):
    root = jxu(tmp_path, [jxu_row([BOX, OVER], split="testA")], "test")
    (tmp_path / "coco" / "train2014").mkdir(parents=True)
    (record,) = load_benchmark("jxu124_refcoco/testA", root)
    assert record.path == str(tmp_path / "coco" / "train2014" / NAME)
    same(record.expressions[0], BOTH)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"split": "testB"}, "testB"),
        ({"raw_anns": "{"}, "raw_anns"),
        ({"raw_anns": json.dumps(ann(2, [BOX]))}, "ann_id"),
        ({"raw_image_info": json.dumps(IMAGE | {"id": 8})}, "image_id"),
        ({"bbox": [20.0, 2.0, 4.0, 6.0]}, "xyxy"),  # an xywh box
        ({"bbox": [1.0]}, "four numbers"),
        ({"bbox": [float("nan")] * 4}, "four numbers"),
        ({"raw_anns": json.dumps(ann(1, [BOX], iscrowd=1))}, "crowd"),
    ],
)
def test_bad_jxu124_rows_are_refused(tmp_path, changes, word):
    with pytest.raises(InputError, match=word):
        load_benchmark("jxu124_refcoco/val", jxu(tmp_path, [jxu_row([BOX], **changes)]))


def test_jxu124_benchmark(tmp_path):
    item = {"ann_info": ann(1, [BOX, OVER], bbox=[2.0, 2.0, 9.0, 9.0]), "ref_info": ref()}
    row = {"ref_list": [item], "image_info": IMAGE}
    write_parquet(tmp_path / "jxu124" / "refcoco-benchmark" / "data" / "refcoco_unc_val-0.parquet", [row])
    (found,) = expressions(load_benchmark("jxu124_benchmark/refcoco_unc_val", tmp_path))
    assert found.expression_id == "jxu124_benchmark/refcoco_unc_val/11"
    assert found.source["box_xyxy"] == (2.0, 2.0, 11.0, 11.0)
    same(found, BOTH)


def lmms_row(segmentation=BOX, **changes):
    row = {"question_id": "q1", "image": {"bytes": jpeg(), "path": None}, "question": "…", "iscrowd": 0}
    row |= {"answer": ["the man ", "he"], "segmentation": [float(v) for v in segmentation]}
    return row | {"bbox": [2.0, 2.0, 6.0, 6.0], "file_name": NAME.replace(".jpg", "_3.jpg")} | changes


def lmms(tmp_path, rows, split="val", name="RefCOCO"):
    write_parquet(tmp_path / "lmms-lab" / name / "data" / f"{split}-00000-of-00001.parquet", rows)
    return tmp_path


def test_lmms_masks_are_labelled_and_lost_polygons_left_out(tmp_path):
    lost = lmms_row(question_id="q2", bbox=[2.0, 2.0, 22.0, 6.0])  # its second polygon is gone
    crowd = lmms_row(question_id="q3", iscrowd=1)
    (record,) = load_benchmark("lmms_refcoco/val_mixed", lmms(tmp_path, [lost, crowd, lmms_row()]))
    assert (record.image_id, record.height, record.width) == ("7", H, W)
    assert [e.expression_id for e in record.expressions] == [
        "lmms_refcoco/val_mixed/q1_0",
        "lmms_refcoco/val_mixed/q1_1",
    ]
    first = record.expressions[0]
    same(first, FIRST)
    assert first.source["truth"] == LOSSY and first.source["box_xyxy"] == (2.0, 2.0, 8.0, 8.0)
    assert len(record.source["left_out"]) == 2 and encoded_photo(record.inside) == jpeg()


def test_lmms_val_is_two_splits_in_one(tmp_path):
    lmms(tmp_path, [lmms_row()])
    with pytest.raises(InputError, match="val_mixed"):
        load_benchmark("lmms_refcoco/val", tmp_path)
    lmms(tmp_path, [lmms_row()], name="RefCOCOplus")
    assert len(expressions(load_benchmark("lmms_refcoco+/val", tmp_path))) == 2
    with pytest.raises(InputError, match="testA"):
        load_benchmark("lmms_refcoco+/test", tmp_path)


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "jxu124" / "refcoco" / "data" / "validation-0.parquet"
    jxu(tmp_path, [jxu_row([BOX])])
    whole = next(path.parent.glob("*")).read_bytes()
    next(path.parent.glob("*")).unlink()
    for cut in (b"", b"PAR1", whole[:-40], whole[len(whole) // 2 :], b"x" * 99):
        path.write_bytes(cut)
        with pytest.raises(InputError, match=r"validation-0\.parquet: is no readable parquet"):
            load_benchmark("jxu124_refcoco/val", tmp_path)
    write_parquet(path, [without(jxu_row([BOX]), "raw_anns")])
    with pytest.raises(InputError, match="raw_anns"):
        load_benchmark("jxu124_refcoco/val", tmp_path)


# ---- whatever comes, only InputError comes out


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(-1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


def places(value, path=()):
    """Every place in nested data, as a path of keys."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


GOOD = {
    "refs": [ref(), ref(2, 12)],
    "instances": {"images": [IMAGE], "annotations": [ann(1, [BOX]), ann(2, coded(BOTH, "list"))]},
    "psalm": [psalm_record([ann(1, [BOX])]), psalm_record([ann(2, coded(BOTH, "str"))])],
    "cris": [cris_record()],
}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), which=st.sampled_from(sorted(GOOD)), new=JUNK)
def test_mutated_json_raises_input_error_only(tmp_path_factory, data, which, new):
    path = data.draw(st.sampled_from(list(places(GOOD[which]))))
    files = GOOD | {which: replaced(GOOD[which], path, new)}
    root = tmp_path_factory.mktemp("m")
    for folder, file, content in (
        ("refcoco", "refs(unc).json", "refs"),
        ("refcoco", "instances.json", "instances"),
        ("refcoco", "val_psalm.json", "psalm"),
        ("grefcoco", "grefs(unc).json", "refs"),
        ("grefcoco", "instances.json", "instances"),
        ("grefcoco", "val_psalm.json", "psalm"),
        ("anns/refcoco", "val.json", "cris"),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / file).write_text(json.dumps(files[content]))
    (root / "masks" / "refcoco").mkdir(parents=True)
    (root / "masks" / "refcoco" / "3.png").write_bytes(png(THREE))
    for name in ("refcoco", "grefcoco", "psalm_refcoco", "psalm_grefcoco", "cris_refcoco"):
        try:
            read = load_benchmark(f"{name}/val", root)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert all((e.rle is None) == (e.granularity is Granularity.NONE) for e in expressions(read))


@settings(deadline=None, max_examples=40)  # many more in test_fuzz_inputs.py
@given(data=st.data(), form=st.sampled_from(["python 2, 0", "python 2, 2", "2", "5"]))
def test_mutated_pickles_raise_input_error_only(tmp_path_factory, data, form):
    good = (
        python_2(GOOD["refs"], int(form[-1])) if "python" in form else pickle.dumps(GOOD["refs"], int(form))
    )
    at = data.draw(st.integers(0, len(good) - 1))
    new = data.draw(st.binary(max_size=6))
    root = tmp_path_factory.mktemp("p")
    refer_root(root, [], GOOD["instances"]["annotations"])
    (root / "refcoco" / "refs(unc).p").write_bytes(
        good[:at] + new + good[at + data.draw(st.integers(0, 6)) :]
    )
    try:
        read_refcoco(root, "val")
    except InputError as error:
        assert "\n" not in str(error)


def test_a_list_in_a_million_places_is_refused_quickly(tmp_path):
    laughs = "ha"
    for _ in range(40):  # a trillion entries in forty small lists
        laughs = [laughs, laughs]
    refs = [ref(ann_id=laughs, sentences=[{"sent": "PLACE", "sent_id": laughs}])]
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "grefcoco").mkdir()
    for folder, file in (("refcoco", "refs(unc).p"), ("grefcoco", "grefs(unc).p")):
        old = pickle.dumps(refs, 2).replace(b"X\x05\x00\x00\x00PLACE", b"U\x05caf\xe9 ")  # a Python-2 string
        (tmp_path / folder / file).write_bytes(old)
        (tmp_path / folder / "instances.json").write_text(json.dumps(GOOD["instances"]))
    for read in (read_refcoco, read_grefcoco):
        with pytest.raises(InputError, match="unfolds"):
            read(tmp_path, "val")
    (tmp_path / "old.p").write_bytes(b"(lp0\n" + b"(l" + b"g0\na" * 2 + b"a" + b"S'\\xe9'\na.")
    with pytest.raises(InputError, match="pickle"):  # a list that holds itself and a Python-2 string
        load_pickle(tmp_path / "old.p")


# ---- every reader, in the form its own tools write


READERS = ("refcoco", "grefcoco", "psalm_refcoco", "psalm_grefcoco", "cris_refcoco", "cris_refcocog_umd",
           "jxu124_refcoco", "jxu124_benchmark", "lmms_refcoco+", "refcocom")  # fmt: skip


def native(root, reader, sentence, segmentation=(BOX,), **changes):
    """A root with one record of one photo and one sentence, in the native form of the reader; its NAME/SPLIT."""
    asked, rows = [{"sent": sentence, "raw": sentence, "sent_id": 11, "tokens": []}], [ann(1, segmentation)]
    rows[0] |= changes
    if reader in ("refcoco", "grefcoco"):
        record = ref([1] if reader == "grefcoco" else 1, sentences=asked)
        refer_root(
            root, [record], rows, reader, {"refcoco": "refs(unc).p", "grefcoco": "grefs(unc).p"}[reader]
        )
    elif reader.startswith("psalm"):
        psalm_list(root, [psalm_record(rows, asked, image=ref()["file_name"])], reader.removeprefix("psalm_"))
    elif reader == "cris_refcoco":
        cris_lists(root, [cris_record(sents=(sentence,))], values=summed(FIRST))
    elif reader == "cris_refcocog_umd":
        cris_lmdb(root, [cris_value(sents=[sentence], num_sents=1, mask=png(summed(FIRST)))], "refcocog_u")
    elif reader == "jxu124_refcoco":
        jxu(root, [jxu_row(segmentation, sentences=asked, raw_anns=json.dumps(rows[0]))])
    elif reader == "jxu124_benchmark":
        path = root / "jxu124" / "refcoco-benchmark" / "data" / "refcoco_unc_val-0.parquet"
        item = {"ann_info": rows[0], "ref_info": ref(sentences=asked)}
        write_parquet(path, [{"ref_list": [item], "image_info": IMAGE}])
        return "jxu124_benchmark/refcoco_unc_val"
    elif reader == "lmms_refcoco+":
        lmms(root, [lmms_row(answer=[sentence], **changes)], name="RefCOCOplus")
    else:
        folder = root / "RefCOCOm"
        (folder / "annotations").mkdir(parents=True)
        (folder / "masks").mkdir()
        (folder / "annotations" / "val_part_only.json").write_text(
            json.dumps([cris_record(sents=(sentence,))])
        )
        (folder / "masks" / "3.png").write_bytes(png(summed(FIRST)))
        return "refcocom/val_part_only"
    return f"{reader}/val"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "sentence", [" the left dog \n", "caf\u00e9 \u2615 na\u00efve ", "\tl&#39;homme \u2014 \u5de6"]
)
def test_words_and_photo_names_in_every_reader(tmp_path, reader, sentence):
    """Blanks at the ends go, letters of any script stay; the photo is no ref's file_name with its _<n>."""
    (record,) = load_benchmark(native(tmp_path, reader, sentence), tmp_path)
    (found,) = record.expressions
    assert found.text == sentence.strip() and found.source["raw"] == sentence
    assert record.image_id == "7" and (record.height, record.width) == (H, W)
    assert (Path(record.path).name if record.path else record.inside.name) == NAME
    assert record.source["licence"].startswith("photo ")
    same(found, FIRST)


@pytest.mark.parametrize("reader", [name for name in READERS if not name.startswith(("cris", "refcocom"))])
def test_a_crowd_is_no_referent_in_any_reader(tmp_path, reader):
    with pytest.raises(InputError, match="crowd"):
        load_benchmark(native(tmp_path, reader, "the crowd", iscrowd=1), tmp_path)


@pytest.mark.parametrize("reader", READERS)
def test_a_target_without_a_pixel_is_refused_in_every_reader(tmp_path, reader):
    empty = png(np.zeros((H, W), np.uint8))
    name = native(tmp_path, reader, "it", [[1, 1, 5, 5]])
    if reader.startswith("lmms"):
        lmms(tmp_path, [lmms_row([1, 1, 5, 5])], name="RefCOCOplus")
    for path in tmp_path.rglob("3.png"):
        path.write_bytes(empty)
    if reader == "cris_refcocog_umd":
        (tmp_path / "datasets" / "lmdb" / "refcocog_u" / "val.lmdb").unlink()
        cris_lmdb(tmp_path / "again", [cris_value(mask=empty)], "refcocog_u")
        name, tmp_path = "cris_refcocog_umd/val", tmp_path / "again"
    with pytest.raises(InputError, match="no pixel"):
        load_benchmark(name, tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "mask"),
    [
        ([BOX, OVER], BOTH),
        (coded(BOTH, "bytes"), BOTH),  # as pycocotools gives them: only a binary format can hold them
        (coded(BOTH, "str"), BOTH),
        (coded(BOTH, "list"), BOTH),
        ([coded(FIRST, "bytes"), coded(rect((5, 5, 11, 11)), "bytes")], BOTH),
    ],
)
def test_segmentations_in_parquet(tmp_path, segmentation, mask):
    (found,) = expressions(load_benchmark(native(tmp_path, "jxu124_benchmark", "it", segmentation), tmp_path))
    same(found, mask)


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize(
    ("ann_id", "granularity", "mask"),
    [
        ([1], "object", FIRST), (1, "object", FIRST), ([1, 2], "multi", BOTH), ([1, 3], "object", FIRST),
        ([-1], "none", None), (-1, "none", None), ([], "none", None),
    ],
)  # fmt: skip
def test_grefs_as_python_2_pickles(tmp_path, protocol, ann_id, granularity, mask):
    rows = [ann(1, [BOX]), ann(2, [OVER]), ann(3, coded(BOTH, "list"), iscrowd=1)]
    record = ref(ann_id, no_target=mask is None)
    root = refer_root(tmp_path, [record], rows, "grefcoco", "grefs(unc).p", protocol)
    (found,) = expressions(load_benchmark("grefcoco/val", root))
    assert str(found.granularity) == granularity
    assert found.rle is None if mask is None else np.array_equal(masks.decode(found.rle), mask)


@pytest.mark.parametrize("values", [summed(FIRST, rect((15, 12, 20, 18))), THREE])
def test_a_part_is_all_its_instances(tmp_path, values):
    """RefCOCOm: the mask file holds every instance of the part, apart or overlapping (254, 253): all count."""
    name = native(tmp_path, "refcocom", "the wheel")
    (tmp_path / "RefCOCOm" / "masks" / "3.png").write_bytes(png(values))
    (found,) = expressions(load_benchmark(name, tmp_path))
    assert found.granularity is Granularity.PART
    same(found, values > 0)


# ---- counts


def test_published_splits_add_up():
    for dataset, splits in (
        ("refcoco", ("train", "val", "testA", "testB")),
        ("refcoco+", ("train", "val", "testA", "testB")),
        ("refcocog_umd", ("train", "val", "test")),
    ):
        parts, whole = [published_of(dataset, split) for split in splits], published_of(dataset, "all")
        for field in ("images", "refs", "sentences"):
            assert sum(getattr(part, field) for part in parts) == getattr(whole, field), (dataset, field)
    assert (
        sum(published_of("grefcoco", split).sentences for split in ("train", "val", "testA", "testB"))
        == 259_859
    )


def test_published_names_are_benchmarks():
    assert published_of("refcoco", "test") is None
    assert len({(count.dataset, count.split) for count in PUBLISHED}) == len(PUBLISHED)
    for count in PUBLISHED:
        assert all(getattr(count, field) is not None for field in count.recalled)
        if count.split != "all" and count.dataset not in ("mmr", "arefcoco"):
            assert count.split in splits_of(count.dataset, None)


def test_without_lmdb_the_extra_is_named(tmp_path, monkeypatch):
    cris_lmdb(tmp_path, [cris_value()])
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(InputError, match=r"uniresxx\[cris\]"):
        read_cris(tmp_path, "val")


def test_readers_start_without_pyarrow_and_lmdb():
    code = "import sys, uniresxx.data.catalog; sys.exit(bool({'pyarrow', 'lmdb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [[2, 2, 8, 8], [25, 15, 30, 20]]),  # cut to the photo
        ({"iscrowd": 1}, [[2, 2, 8, 8]]),
        ({"bbox": [3, 3, 0, 4]}, [[2, 2, 8, 8]]),
        ({"image_id": 8}, [[2, 2, 8, 8]]),
        ({"image_id": [7]}, [[2, 2, 8, 8]]),
        ({"bbox": None}, None),
        ({"bbox": [1, 2, 3]}, None),
        ({"bbox": [1, 2, float("inf"), 4]}, None),
        ({"bbox": [1, 2, 10**400, 4]}, None),
    ],
)
def test_boxes_of_all_instances_or_none(tmp_path, changes, expected):
    """Nobody refers to the second instance. Where its box is not known, the boxes of the photo are not complete."""
    rows = [ann(1, [BOX]), ann(2, [FAR], bbox=[25, 15, 10, 10]) | changes]
    [record] = read_refcoco(refer_root(tmp_path, [ref()], rows), "val")
    found = {kind: boxes.tolist() for kind, boxes in record.boxes.items()}
    assert found == ({} if expected is None else {"object": expected})
