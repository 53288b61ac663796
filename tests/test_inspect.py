"""`uniresxx data inspect`: counts beside the published ones, licences, the contact sheet; absent splits."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from uniresxx.cli import main as program
from uniresxx.cli.data.counts import beside, summary
from uniresxx.cli.data.inspect import passing
from uniresxx.data.catalog import DATA_SETS, load_benchmark, merge_records, splits_of
from uniresxx.data.contact_sheet import COLUMNS, ROWS, Sheet
from uniresxx.data.published_counts import PUBLISHED, PublishedCount, published_of
from uniresxx.data.readers.collector import COCO_MASKS
from uniresxx.data.readers.instances import NOT_STATED
from uniresxx.data.store.read import Store
from uniresxx.imaging import masks
from uniresxx.types import Expression, Granularity, ImageRecord

H, W = 20, 30
BOX = [[2, 2, 8, 2, 8, 8, 2, 8]]


def run_data(words):
    return program(["data", *words])


def refcoco_root(root, splits=("train", "val"), folder="refcoco", file="refs(unc).json", licence=True):
    """One photo, ref and sentence per split; photo k has COCO's licence k + 3, the last has none."""
    (root / folder).mkdir(parents=True)
    photos, anns, refs = [], [], []
    for at, split in enumerate(splits, 1):
        name = f"COCO_train2014_{at:012d}.jpg"
        photos.append({"id": at, "file_name": name, "height": H, "width": W, "license": at + 3})
        anns.append({"id": at, "image_id": at, "iscrowd": 0, "segmentation": BOX})
        sentence = {"sent": "it", "raw": "it", "sent_id": at}
        refs.append({"ref_id": at, "ann_id": at, "image_id": at, "split": split, "sentences": [sentence]})
    del photos[-1]["license"]
    content = {"images": photos, "annotations": anns}
    if licence:
        content["licenses"] = [{"id": 4, "name": "By", "url": "u"}, {"id": [5]}, "x", {"id": 6, "name": None}]
    (root / folder / "instances.json").write_text(json.dumps(content))
    (root / folder / file).write_text(json.dumps(refs))
    return root


# ---- published counts


def test_a_difference_is_one_line_with_both_numbers(tmp_path, capsys):
    root = refcoco_root(tmp_path)
    assert run_data(["inspect", "refcoco", "--data", str(root)]) == 0
    printed = capsys.readouterr()
    assert "  images                    1           published 16,994\n" in printed.out
    assert "  object                    1           published 10,834\n" in printed.out
    warnings = [line for line in printed.err.splitlines() if line.startswith("warning")]
    assert warnings == [
        "warning: refcoco/train: images 1, published 16,994 (images); refs 1, published 42,404 (refs); "
        "expressions 1, published 120,624 (sentences)",
        "warning: refcoco/val: images 1, published 1,500 (images); refs 1, published 3,811 (refs); "
        "expressions 1, published 10,834 (sentences)",
    ]
    assert "not read: refcoco/testA" in printed.err


def test_recalled_numbers_are_marked(tmp_path, capsys):
    root = refcoco_root(tmp_path, folder="refcocog", file="refs(umd).json")
    assert run_data(["inspect", "refcocog_umd/val", "--data", str(root)]) == 0
    printed = capsys.readouterr()
    assert "expressions               1           published 4,896 (recalled)" in printed.out
    assert "expressions 1, published 4,896 (sentences, recalled)" in printed.err


def test_what_agrees_gives_no_warning_and_the_guard_explains_its_part():
    published = PublishedCount("refcoco", "train", 10, 30, 60)
    whole = {"images": 10, "refs": 30, "expressions": 60}
    assert beside(whole, published, {})[1] == []
    fewer, removed = {"images": 8, "refs": 25, "expressions": 50}, {"images": 2, "expressions": 10}
    shown, differ = beside(fewer, published, removed)
    assert differ == [] and shown["images"] == "published 10, removed by the guard 2"
    assert beside(fewer, published, {"images": 1, "expressions": 10})[1] == [
        "images 8 (and 1 removed), published 10 (images)"
    ]
    assert beside(whole, replace(published, images=None, refs=31), {})[1] == ["refs 30, published 31 (refs)"]


def test_inspect_adds_what_the_guard_removed_from_a_store(tmp_path, capsys, monkeypatch):
    root = refcoco_root(tmp_path / "root", ("train", "train", "val"))
    refcoco_root(root, ("val", "train", "train"), folder="refcoco+")
    assert run_data(["prepare", "refcoco", "--root", str(root), "--out", str(tmp_path / "s")]) == 0
    published = PublishedCount("refcoco", "train", 2, 2, 2)
    monkeypatch.setattr("uniresxx.data.published_counts.PUBLISHED", (published,))
    capsys.readouterr()
    assert run_data(["inspect", str(tmp_path / "s")]) == 0
    printed = capsys.readouterr()
    assert "  images                    1           published 2, removed by the guard 1\n" in printed.out
    assert "warning" not in printed.err


def test_converted_sets_are_compared_with_their_originals():
    assert published_of("cris_refcocog_umd", "val") == published_of("refcocog_umd", "val")
    assert published_of("psalm_grefcoco", "testB") == published_of("grefcoco", "testB")
    assert published_of("jxu124_refcoco+", "train") == published_of("refcoco+", "train")
    assert published_of("jxu124_benchmark", "refcoco_plus_unc_testA") == published_of("refcoco+", "testA")
    assert published_of("jxu124_benchmark", "refcocog_google_val") == published_of("refcocog_google", "val")
    assert published_of("jxu124_benchmark", "other_val") is None
    family = ("refcoco", "grefcoco", "refclef_", "mini_real", "cris_", "psalm_", "jxu124_", "lmms_", "gseval")
    plain_answers = ("llava_pretrain", "llava_instruct", "visual_genome", "region_captions")
    for name, (_, splits) in DATA_SETS.items():
        for split in splits if name.startswith((*family, *plain_answers)) else ():
            unknown = name.startswith(("lmms_", "refclef_", "mini_real", *plain_answers))
            assert (published_of(name, split) is None) == unknown, name


def test_sets_of_objects_only_are_known_as_such():
    objects = {count.dataset for count in PUBLISHED if count.only_objects}
    family = {"refcoco", "refcoco_google", "refcoco+", "refcocog_umd", "refcocog_google"}
    assert objects == {*family, "refcoco_m"}


# ---- licences


def test_every_image_has_a_licence_that_the_data_states_or_none(tmp_path, capsys):
    root = refcoco_root(tmp_path / "root", ("train", "train", "train", "val"))
    found = [item.source["licence"] for item in load_benchmark("refcoco/train", root)]
    assert found == [
        f"photo By (COCO 4); annotations: {COCO_MASKS}",
        f"photo {NOT_STATED}; annotations: {COCO_MASKS}",  # its list says nothing of 5
        f"photo {NOT_STATED}; annotations: {COCO_MASKS}",
    ]
    assert load_benchmark("refcoco/val", root)[0].source["licence"].startswith(f"photo {NOT_STATED};")
    assert run_data(["prepare", "refcoco", "--root", str(root), "--out", str(tmp_path / "s")]) == 0
    assert Store.open(tmp_path / "s").row(0)["licence"] == found[0]
    capsys.readouterr()
    assert run_data(["inspect", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr().out
    assert f"licences\n  3 images: photo {NOT_STATED}" in shown and "  1 images: photo By (COCO 4)" in shown


def test_without_a_list_cocos_own_numbers_serve(tmp_path):
    root = refcoco_root(tmp_path, ("train", "val"), licence=False)
    (record,) = load_benchmark("refcoco/train", root)
    assert record.source["licence"].startswith("photo Attribution License (COCO 4);")


def test_records_of_two_sets_are_under_both_licences(tmp_path):
    (record,) = load_benchmark("refcoco/train", refcoco_root(tmp_path))
    other = replace(record, source={"licence": "B", "left_out": ("x",)})
    (merged,) = merge_records([record], [other])
    assert merged.source == {"licence": f"{record.source['licence']} | B", "left_out": ("x",)}
    assert merge_records([record], [record])[0].source["licence"] == record.source["licence"]


# ---- absent splits


def test_prepare_takes_the_splits_that_are_there(tmp_path, capsys):
    root = refcoco_root(tmp_path / "root", ("val", "testA"))
    words = ["prepare", "refcoco", "--root", str(root), "--out", str(tmp_path / "s")]
    assert run_data(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for split in ("train", "testB"):
        (line,) = [item for item in lines if f"{split}: not there" in item]
        assert "it has testA, val" in line
    store = Store.open(tmp_path / "s")
    assert store.splits == ["val", "testA"] and set(store.meta["missing"]) == {"train", "testB"}
    assert [item.image_id for item in store] == ["1", "2"]
    assert run_data(words) == 0  # done: kept
    assert run_data(["verify", str(tmp_path / "s")]) == 1  # its photos are not there
    refcoco_root(root, ("train", "val", "testA"), folder="refcoco2")
    (root / "refcoco2" / "refs(unc).json").rename(root / "refcoco" / "refs(unc).json")
    assert run_data(words) == 2 and "--fresh" in capsys.readouterr().err
    assert run_data([*words, "--fresh"]) == 2  # instances.json lacks image 3: that is no absent split
    assert "image_id 3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["refcoco", "grefcoco", "refcocom", "mini_real", "cris_refcoco",
                                  "psalm_refcoco", "jxu124_refcoco", "lmms_refcoco", "refcoco/nosplit"])  # fmt: skip
def test_where_no_split_is_there_prepare_fails_with_one_line(tmp_path, capsys, name):
    root = refcoco_root(tmp_path / "root", folder="refcoco" if name.endswith("nosplit") else "other")
    assert run_data(["prepare", name, "--root", str(root), "--out", str(tmp_path / "s")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]  # nothing is left to trip over


def test_splits_of_the_benchmark_copies_are_globbed(tmp_path):
    folder = tmp_path / "jxu124" / "refcoco-benchmark" / "data"
    folder.mkdir(parents=True)
    assert splits_of("jxu124_benchmark", tmp_path) == []
    for name in ("refcocog_umd_val-00000-of-00001-a.parquet", "refcoco_unc_val-0.parquet", "a b-0.parquet"):
        (folder / name).write_bytes(b"")
    assert splits_of("jxu124_benchmark", tmp_path) == ["refcoco_unc_val", "refcocog_umd_val"]


def test_a_broken_split_is_not_taken_for_a_missing_one(tmp_path, capsys):
    root = refcoco_root(tmp_path / "root")
    path = root / "refcoco" / "instances.json"
    path.write_text(path.read_text().replace('"segmentation": [[2,', '"segmentation": [["x",', 1))
    assert run_data(["prepare", "refcoco", "--root", str(root), "--out", str(tmp_path / "s")]) == 2
    assert "ann 1" in capsys.readouterr().err.splitlines()[-1]


# ---- the contact sheet


def scene(number, kinds=tuple(Granularity), path=None):
    mask = np.zeros((60, 80), dtype=bool)
    mask[number % 50 : number % 50 + 9, 5:30] = True
    pixels = None if path else np.full((60, 80, 3), number * 7 % 256, dtype=np.uint8)
    asked = tuple(
        Expression(
            f"d/val/{number}_{kind}",
            f"the {kind} of photo {number} " + "with many words " * number,
            kind,
            None if kind is Granularity.NONE else masks.encode(mask),
        )
        for kind in kinds
    )
    return ImageRecord(str(number), 60, 80, asked, path=path, pixels=pixels)


def bytes_of(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_the_sheet_depends_on_the_data_alone_and_shows_every_kind():
    records = [scene(number) for number in range(40)]
    one, two = Sheet(), Sheet()
    one.add(records)
    for record in records[::-1]:  # split by split, in another order
        two.add([record])
    assert one.counts == two.counts and one.counts[Granularity.PART] == 40
    for kind in Granularity:
        chosen = one.chosen(kind)
        assert chosen == two.chosen(kind) and len(chosen) == COLUMNS * ROWS
        assert len({record.image_id for record, _ in chosen}) == len(chosen)
    assert bytes_of(one.draw("d")) == bytes_of(two.draw("d"))


def test_inspecting_holds_few_records():
    """However large a split is: each record is looked at once, as it passes, and a few are kept to be drawn."""
    sheet, licences, most = Sheet(), Counter[str](), 0

    def records():
        nonlocal most
        for number in range(600):
            most = max(most, sum(len(pairs) for pairs in sheet.candidates.values()))
            yield scene(number % 30)

    counts = summary(passing(records(), licences, sheet))
    assert most < 8 * 64 and sheet.counts.total() == 2400
    assert (counts["images"], counts["expressions"], counts["part"]) == (600, 2400, 600)
    assert counts["words, median"] == 5 + 3 * 14.5
    assert licences == {"not stated": 600}


def test_odd_photos_have_a_tile_too(tmp_path):
    sheet = Sheet()
    Image.new("RGB", (3, 900)).save(tmp_path / "thin.png")
    thin = np.zeros((900, 3), dtype=bool)
    thin[7, 1] = True
    asked = (
        Expression("d/thin", "ein schmaler Strich \u20ac \u6f22\x07\n", Granularity.PART, masks.encode(thin)),
    )
    sheet.add([ImageRecord("thin", 900, 3, asked, path=str(tmp_path / "thin.png"))])
    sheet.add([scene(1, (Granularity.OBJECT,), path=str(tmp_path / "none.jpg"))])
    dot = (Expression("d/dot", "", Granularity.MULTI, masks.encode(np.ones((1, 1), bool))),)
    sheet.add([ImageRecord("dot", 1, 1, dot, pixels=np.zeros((1, 1, 3), np.uint8))])
    assert sheet.draw("x" * 500).size[0] > 1000
    assert Sheet().draw("nothing").size[0] > 1000


def test_sheet_is_written_where_asked_and_only_then(tmp_path, capsys, monkeypatch):
    root = refcoco_root(tmp_path / "root")
    monkeypatch.chdir(tmp_path)
    assert run_data(["inspect", "refcoco", "--data", str(root)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]
    assert run_data(["inspect", "refcoco", "--data", str(root), "--sheet", "a.png"]) == 0
    assert run_data(["prepare", "refcoco", "--root", str(root), "--out", "s"]) == 0
    assert run_data(["inspect", "s", "--sheet", "b.png"]) == 0
    assert run_data(["inspect", "s/val", "--sheet", "c.png"]) == 0
    sizes = [Image.open(tmp_path / name).size for name in ("a.png", "b.png", "c.png")]
    assert sizes[0] == sizes[1] and sizes[0][0] == sizes[2][0]
    capsys.readouterr()
    for wrong in ("no/where.png", "root"):
        assert run_data(["inspect", "s", "--sheet", wrong]) == 2
        printed = capsys.readouterr()
        assert "--sheet" in printed.err.splitlines()[-1] and printed.out == ""  # before any work
    assert run_data(["dump", "s", "--sheet", "d.png"]) == 2


def test_scenes_have_a_contact_sheet(tmp_path):
    assert run_data(["inspect", "scenes_easy/val", "--sheet", str(tmp_path / "s.png")]) == 0
    assert Image.open(tmp_path / "s.png").size[0] > 1000
