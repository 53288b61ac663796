"""Own data: sentences files, splits, what is found in a folder, and what the store says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uniresxx.cli import main as program
from uniresxx.data.own.sentence_files import read_csv
from uniresxx.data.store.read import Store
from uniresxx.imaging import masks
from uniresxx.imaging.decode import read_mask

W, H = 60, 40
LEFT, RIGHT = (slice(5, 20), slice(4, 20)), (slice(10, 30), slice(35, 55))


def plane_of(*areas):
    plane = np.zeros((H, W), dtype=bool)
    for area in areas:
        plane[area] = True
    return plane


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two photos, and the masks left.png and right.png."""
    monkeypatch.chdir(tmp_path)
    for place in ("photos", "masks"):
        Path(place).mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (W, H), (90, 120, 60)).save(f"photos/{name}")
    for name, area in (("left", LEFT), ("right", RIGHT)):
        Image.fromarray(plane_of(area).astype(np.uint8) * 255).save(f"masks/{name}.png")
    return tmp_path


@pytest.fixture
def prepare(capsys):
    """(exit code, output, {(split, photo, text): (granularity, plane or None)}) of `prepare own`."""

    def run(*words, out="s", name="mine", photos="photos"):
        command = [
            "--photos",
            photos,
            "--name",
            name,
            "--licence",
            "CC BY 4.0",
            "--out",
            out,
            *map(str, words),
        ]
        code = program(["data", "prepare", "own", *command])
        found = {}
        if code == 0:
            store = Store.open(Path(out))
            for split in store.splits:
                for record in store.records(split):
                    for item in record.expressions:
                        plane = None if item.rle is None else masks.decode(item.rle)
                        found[split, Path(record.path).name, item.text] = str(item.granularity), plane
        return code, "".join(capsys.readouterr()), found

    return run


def kinds(found):
    return {text: kind for (_, _, text), (kind, _) in found.items()}


ROWS = [
    ["photo", "mask", "sentence", "split"],
    ["a.png", "masks/left.png", "the left one, not; the|right", "train"],
    ["b.png", "right.png", 'the "right" one', "check up"],
    ["b.png", "", "the elephant", ""],
]


def csv_text(rows, separator, end="\n"):
    quoted = ([f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in rows)
    return end.join(separator.join(row) for row in quoted) + end


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_csv_with_any_separator_and_line_ends(folder, prepare, separator, end, bom):
    Path("s.csv").write_bytes((bom + csv_text(ROWS, separator, end)).encode())
    code, printed, found = prepare("--sentences", "s.csv")
    assert code == 0, printed
    assert set(found) == {
        ("train", "a.png", "the left one, not; the|right"),
        ("train", "b.png", "the elephant"),
        ("check up", "b.png", 'the "right" one'),
    }
    np.testing.assert_array_equal(found["train", "a.png", ROWS[1][2]][1], plane_of(LEFT))
    np.testing.assert_array_equal(found["check up", "b.png", ROWS[2][2]][1], plane_of(RIGHT))
    assert found["train", "b.png", "the elephant"] == ("none", None)


@pytest.mark.parametrize("photo", ["Photo", "IMAGE", " file", "file_name"])
@pytest.mark.parametrize("mask", ["mask", "Masks"])
@pytest.mark.parametrize("text", ["sentence", "Text", "caption", "EXPRESSION"])
def test_columns_have_several_names_in_any_order(folder, prepare, photo, mask, text):
    Path("s.csv").write_text(f"{text};{mask};{photo}\nit;masks\\left.png;C:\\photos\\a.png\n")
    _, printed, found = prepare("--sentences", "s.csv")
    assert list(found) == [("train", "a.png", "it")], printed


def test_the_note_of_a_spreadsheet_is_no_header(folder):
    Path("s.csv").write_text("sep=|\nphoto|sentence\na.png|a, b\n")
    assert read_csv(Path("s.csv")) == [{"photo": "a.png", "sentence": "a, b"}]


def test_rows_that_cannot_be_used_are_counted_and_hide_no_other(folder, prepare):
    Image.new("L", (W, H)).save("masks/empty.png")
    Path("masks/broken.png").write_bytes(b"no picture")
    lines = ["photo,mask,sentence", "a.png,left.png,", "a.png,left.png,one, two", "gone.png,left.png,x",
             "gone.png,right.png,y", "a.png,nowhere.png,z", "a.png,empty.png,z", "a.png,broken.png,z",
             ",left.png,z", "a.png,left.png,it"]  # fmt: skip
    Path("s.csv").write_text("\n".join(lines))
    code, printed, found = prepare("--sentences", "s.csv")
    assert code == 0 and list(found) == [("train", "a.png", "it")]
    for line in ("no_sentence 1", "missing_photo 1", "missing_mask 1", "no_pixels 1", "unreadable 2",
                 "unknown_image 1", "photos: 1 of 2 found"):  # fmt: skip
        assert line in printed, (line, printed)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_json_lines(folder, prepare, end, bom):
    records = [
        {"photo": "a.png", "masks": ["left.png", "right.png"], "sentences": ["both", "the two\u2028"]},
        {"Image": "b.png", "MASK": "masks/left.png", "Sentence": "the left", "split": "val"},
        {"image": "b.png", "masks": [], "text": "the dog"},
        {"image": "b.png", "mask": None, "caption": "the cat"},
        {"image": "a.png", "mask": "left.png", "sentence": "the handle", "part": "handle"},
        {"image": "a.png", "mask": ["left.png", "right.png"], "sentence": "the ears", "parent": 3},
        {"image": "a.png", "mask": "", "sentence": "the tail", "parent": "dog"},
    ]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    Path("s.jsonl").write_bytes((bom + end.join([*lines, "{no json", ""])).encode())
    code, printed, found = prepare("--sentences", "s.jsonl")
    assert code == 0 and "unreadable 1" in printed, printed
    expected = {"multi": ("both", "the two"), "object": ("the left",), "part": ("the handle", "the ears"),
                "none": ("the dog", "the cat", "the tail")}  # fmt: skip
    assert kinds(found) == {text: kind for kind, some in expected.items() for text in some}
    np.testing.assert_array_equal(found["train", "a.png", "both"][1], plane_of(LEFT, RIGHT))
    assert ("val", "b.png", "the left") in found
    Path("s.json").write_text(json.dumps(records))
    assert kinds(prepare("--sentences", "s.json", out="t")[2]) == kinds(found)


@pytest.mark.parametrize("mark", [";", "|", ","])
def test_a_cell_may_name_several_masks(folder, prepare, mark):
    Path("s.csv").write_text(
        csv_text([["photo", "mask", "sentence"], ["a.png", f"left.png{mark} right.png", "both"]], "\t")
    )
    _, _, found = prepare("--sentences", "s.csv")
    assert kinds(found) == {"both": "multi"}
    np.testing.assert_array_equal(found["train", "a.png", "both"][1], plane_of(LEFT, RIGHT))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "alpha alone"])
def test_every_value_of_a_mask_but_0_is_in(tmp_path, mode):
    plane = plane_of(LEFT)
    ones = plane.astype(np.uint8)
    black = np.zeros((H, W), np.uint8)
    if mode == "P":
        image = Image.fromarray(ones, "P")
        image.putpalette([0, 0, 0] * 256)
    elif mode == "I;16":
        image = Image.fromarray(ones.astype(np.uint16) * 3)
    elif mode == "alpha alone":
        image = Image.fromarray(np.dstack([black, black, black, ones * 255]))
    else:
        layers = {"1": plane, "L": ones, "RGB": np.dstack([black, black, ones])}
        layers |= {"RGBA": np.dstack([black, ones, black, black + 255]), "LA": np.dstack([ones, black + 255])}
        image = Image.fromarray(layers[mode])
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), plane)


def test_a_file_without_masks_is_read_as_nothing_there_and_says_so(folder, prepare):
    Path("s.csv").write_text("photo,sentence\na.png,the dog\n")
    code, printed, found = prepare("--sentences", "s.csv")
    assert code == 0 and kinds(found) == {"the dog": "none"}
    assert "has no column mask" in printed and "no target" in printed


# ---- refs


def coco_file(path, photos=("a.png", "b.png"), ids=(1, 2), split_offset=0):
    images = [
        {"id": key, "file_name": name, "width": W, "height": H} for key, name in zip(ids, photos, strict=True)
    ]
    annotations = []
    for key in ids:
        for number, (rows, columns) in ((10, LEFT), (11, RIGHT)):
            x, y, right, bottom = columns.start, rows.start, columns.stop, rows.stop
            corners = [x, y, right, y, right, bottom, x, bottom]
            annotations.append(
                {"id": f"{key}-{number}", "image_id": key, "category_id": 1, "segmentation": [corners]}
            )
    annotations.append({"id": f"{ids[0]}-box", "image_id": ids[0], "bbox": [1, 2, 3, 4]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def refs_file(refs, name="refs.json"):
    Path(name).write_text(json.dumps(refs), encoding="utf-8-sig")
    return ["--annotations", "instances.json", "--sentences", name]


def test_refs_mean_annotations_by_id(folder, prepare):
    coco_file(Path("instances.json"))
    refs = [
        {
            "image_id": "1",
            "ann_id": "1-10",
            "sentences": ["left", {"sent": " ", "raw": "Left!"}],
            "split": "train",
        },
        {"image_id": 1.0, "ann_id": ["1-10", "1-11"], "sentences": [{"sent": "both", "raw": "Both"}]},
        {"image_id": 2, "ann_id": [-1], "sentences": {"raw": "the dog"}, "split": "val"},
        {"image_id": 2, "ann_id": [], "no_target": True, "sentences": "the cat"},
        {"image_id": 1, "ann_id": ["1-11"], "sentences": ["the handle"], "part": "handle"},
    ]
    code, printed, found = prepare(*refs_file(refs))
    assert code == 0 and "left out" not in printed, printed
    assert kinds(found) == {"left": "object", "Left!": "object", "both": "multi", "the dog": "none",
                            "the cat": "none", "the handle": "part"}  # fmt: skip
    np.testing.assert_array_equal(found["train", "a.png", "both"][1], plane_of(LEFT, RIGHT))
    assert ("val", "b.png", "the dog") in found


def test_refs_that_cannot_be_used_are_counted(folder, prepare):
    coco_file(Path("instances.json"))
    refs = [
        {"image_id": 9, "ann_id": ["1-10"], "sentences": ["x"]},
        {"image_id": 9, "ann_id": [], "sentences": ["x"]},
        {"image_id": 1, "ann_id": ["1-99"], "sentences": ["x"]},
        {"image_id": 1, "ann_id": ["2-10"], "sentences": ["x"]},
        {"image_id": 1, "ann_id": ["1-10"], "sentences": [" "]},
        {"image_id": 1, "ann_id": ["1-10", -1], "sentences": ["x"]},
        {"image_id": 1, "ann_id": ["1-box"], "sentences": ["x"]},
        {"image_id": 1, "ann_id": ["1-10", "1-box"], "sentences": ["y"]},
        {"image_id": 1, "ann_id": ["1-10"], "sentences": ["it"]},
    ]
    code, printed, found = prepare(*refs_file(refs))
    assert code == 0 and kinds(found) == {"it": "object"}
    for line in ("unknown_image 2", "unknown_annotation 2", "no_sentence 1", "unreadable 1", "box_only 1"):
        assert line in printed, (line, printed)


def test_ids_hold_within_one_file(folder, prepare):
    for name, photo in (("training", "a.png"), ("holdout", "b.png")):
        coco_file(Path(f"{name}.json"), photos=[photo], ids=[1])
    refs = [{"image_id": 1, "ann_id": ["1-10"], "sentences": [f"in {photo}"], "file_name": photo}
            for photo in ("b.png", "a.png")]  # fmt: skip
    Path("refs.json").write_text(json.dumps(refs))
    words = ["--annotations", "training.json", "holdout.json", "--sentences", "refs.json"]
    expected = {("training", "a.png", "in a.png"), ("holdout", "b.png", "in b.png")}
    assert set(prepare(*words)[2]) == expected
    for ref, split in zip(refs, ("holdout", "training"), strict=True):
        ref |= {"file_name": None, "split": split}
    Path("refs.json").write_text(json.dumps(refs))
    assert set(prepare(*words, out="t")[2]) == expected


def test_refs_and_sentences_decide_alone(folder, prepare):
    coco_file(Path("instances.json"))
    Path("s.csv").write_text("photo,mask,sentence\na.png,left.png,it\n")
    _, printed, found = prepare("--annotations", "instances.json", "--sentences", "s.csv")
    assert kinds(found) == {"it": "object"} and "box_only" not in printed


# ---- splits


def test_a_csv_without_sentences_only_says_the_splits(folder, prepare):
    coco_file(Path("instances.json"))
    Path("splits.csv").write_text("Image;Split\nphotos\\a.png;training\nb.png;hold out\nnot_there.png;x\n")
    _, printed, found = prepare("--annotations", "instances.json", "--sentences", "splits.csv")
    assert set(found) == {("training", "a.png", "all cup"), ("hold out", "b.png", "all cup")}
    assert "missing_photo" not in printed


def test_the_splits_csv_comes_before_the_files_and_the_row_before_it(folder, prepare):
    for name, photo in (("train", "a.png"), ("val", "b.png")):
        coco_file(Path(name) / "_annotations.coco.json", photos=[photo], ids=[0])
    files = ["train/_annotations.coco.json", "val/_annotations.coco.json"]
    Path("splits.csv").write_text("photo,split\nb.png,own\n")
    assert {key[0] for key in prepare("--annotations", *files)[2]} == {"train", "val"}
    words = ["--annotations", *files, "--sentences", "splits.csv"]
    assert {key[0] for key in prepare(*words, out="t")[2]} == {"train", "own"}
    Path("s.csv").write_text(
        "photo,mask,sentence,split\nb.png,left.png,x,\nb.png,right.png,y,mine\na.png,left.png,z,\n"
    )
    _, _, found = prepare("--sentences", "s.csv", "splits.csv", out="u")
    assert {text: split for split, _, text in found} == {"x": "own", "y": "mine", "z": "train"}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["instances_training.json", "instances_check.json"], {"training", "check"}),
        (["one.json", "two.json"], {"one", "two"}),
        (["one/instances_x.json", "two/instances_x.json"], {"one", "two"}),
        (["one/instances_x.json", "two/instances_y.json"], {"x", "y"}),
    ],
)
def test_several_coco_files_are_splits(folder, prepare, files, splits):
    for file, photo in zip(files, ("a.png", "b.png"), strict=True):
        coco_file(Path(file), photos=[photo], ids=[1])
    _, _, found = prepare("--annotations", *files)
    assert {key[0] for key in found} == splits
    _, _, found = prepare("--annotations", files[0], out="t")
    assert {key[0] for key in found} == {"train"}, "one file alone says no split"


@pytest.mark.parametrize(
    "layout",
    [
        {"path": ".", "train": "images/train", "dev": "images/dev"},
        {"path": "../datasets/here", "train": "images/train", "dev": ["images/dev"]},
        {"path": "/data/someone/set", "train": "/data/someone/set/images/train", "dev": "/x/images/dev"},
        {"train": "../images/train", "dev": "dev.txt"},
        {"train": "images\\train", "dev": "images/dev", "test": None, "nc": 2},
    ],
)
@pytest.mark.parametrize("names", [["cup", "plate"], {0: "cup", "1": "plate"}])
def test_the_splits_of_a_data_yaml(folder, prepare, layout, names):
    for split, photo in (("train", "a"), ("dev", "b")):
        (Path("images") / split).mkdir(parents=True)
        (Path("labels") / split).mkdir(parents=True)
        Path(f"photos/{photo}.png").rename(f"images/{split}/{photo}.png")
        Path(f"labels/{split}/{photo}.txt").write_text("1 0.1 0.1 0.5 0.1 0.3 0.5\n0 0.5 0.5 0.2 0.2\n")
    Path("dev.txt").write_text("./images/dev/b.png\n")
    Path("data.yaml").write_text(json.dumps({**layout, "names": names}))
    code, printed, found = prepare("--annotations", "data.yaml", photos="images")
    assert code == 0 and set(found) == {("train", "a.png", "the plate"), ("dev", "b.png", "the plate")}, (
        printed
    )
    assert "box_only 2" in printed


def test_a_data_yaml_of_a_folder_that_is_not_there_is_refused(folder, prepare):
    Path("data.yaml").write_text(json.dumps({"train": "pictures", "names": ["cup"]}))
    code, printed, _ = prepare("--annotations", "data.yaml")
    assert code == 2 and "'pictures'" in printed
    Path("labels").mkdir()
    Path("labels/a.txt").write_text("0 0.1 0.1 0.5 0.1 0.3 0.5\n")
    content = {"train": "images", "test": "images/test", "task": "segment", "names": ["cup"], "date": 2024}
    Path("data.yaml").write_text(json.dumps(content))
    code, printed, found = prepare("--annotations", "data.yaml", out="t")
    assert code == 0 and kinds(found) == {"the cup": "object"} and "test names 'images/test'" in printed
    Path("data.yaml").write_text("names: [a\n")
    assert "no readable YAML" in prepare("--annotations", "data.yaml")[1]


# ---- what is found in a folder


def test_what_lies_in_the_folder_of_photos_counts_where_nothing_is_named(folder, prepare):
    Path("photos/README.txt").write_text("0 words")
    Path("photos/package.json").write_text('{"name": "x"}')
    Path("photos/settings.yaml").write_text("colour: red")
    coco_file(Path("photos/coco.json"))
    _, printed, found = prepare()
    assert kinds(found) == {"all cup": "multi"} and "given: COCO: 1 file" in printed
    assert "not used: photos/package.json" in printed


def test_yolo_without_a_data_yaml_is_found_with_its_classes(folder, prepare):
    for split, photo in (("train", "a"), ("val", "b")):
        (Path("photos") / split / "labels").mkdir(parents=True)
        Path(f"photos/{split}/labels/{photo}.txt").write_text("0 0.1 0.1 0.5 0.1 0.3 0.5\n")
    Path("photos/classes.txt").write_text("mug\n")
    _, printed, found = prepare()
    assert set(found) == {("train", "a.png", "the mug"), ("val", "b.png", "the mug")}, printed


def test_a_broken_file_in_a_folder_hides_no_other_and_a_named_one_is_refused(folder, prepare):
    coco_file(Path("photos/coco.json"))
    Path("photos/broken.json").write_text("{")
    code, printed, found = prepare()
    assert code == 0 and kinds(found) == {"all cup": "multi"} and "unreadable 1" in printed
    code, printed, _ = prepare("--annotations", "photos/broken.json", out="t")
    assert code == 2 and "broken.json" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no annotations of a known kind"),
        (["--annotations", "gone.json"], "gone.json: no such file"),
        (["--annotations", "photos/a.png"], "a.png"),
        (["--sentences", "latin.csv"], "is no UTF-8"),
        (["--sentences", "odd.csv"], "no column names a photo"),
        (["--sentences", "refs.json"], "no annotations of a known kind"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder, prepare, words, message):
    Path("latin.csv").write_bytes("photo,sentence\na.png,gr\u00fcn\n".encode("latin-1"))
    Path("odd.csv").write_text("x,y\n1,2\n")
    code, printed, _ = prepare(*words)
    assert code == 2 and (message in printed or words[:2] == ["--sentences", "refs.json"])
    assert not Path("s").exists() and "Traceback" not in printed


def test_annotations_of_several_kinds_in_a_folder_must_be_named(folder, prepare):
    coco_file(Path("photos/coco.json"))
    Path("photos/a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.png"}))
    code, printed, _ = prepare()
    assert code == 2 and "COCO" in printed and "labelme" in printed and "--annotations" in printed


# ---- the store


@pytest.mark.parametrize("name", ["grefcoco", "refcocom", "scenes"])
def test_a_name_of_a_benchmark_brings_nothing_of_it(folder, prepare, capsys, name):
    coco_file(Path("instances.json"))
    _, printed, _ = prepare("--annotations", "instances.json", name=name)
    assert program(["data", "inspect", "s"]) == 0
    printed += "".join(capsys.readouterr())
    assert "published" not in printed and "found no id list" not in printed and "refcoco+" not in printed
    assert "CC BY 4.0" in printed and "COCO 1" not in printed and "drawn" not in printed
    assert Store.open(Path("s")).name == name
    assert {record.source["licence"] for record in Store.open(Path("s"))} == {
        "photo CC BY 4.0; annotations: CC BY 4.0"
    }


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", "[SEG]"])
def test_a_name_that_no_report_could_show_is_refused(folder, prepare, name):
    coco_file(Path("instances.json"))
    code, printed, _ = prepare("--annotations", "instances.json", f"--name={name}")
    assert code == 2 and "--name" in printed


def test_a_photo_that_arrives_later_makes_another_store(folder, prepare):
    coco_file(Path("instances.json"))
    Path("photos/b.png").rename("b.png")
    assert "photos: 1 of 2 found" in prepare("--annotations", "instances.json")[1]
    Path("b.png").rename("photos/b.png")
    code, printed, _ = prepare("--annotations", "instances.json")
    assert code == 2 and "--fresh" in printed
    code, printed, found = prepare("--annotations", "instances.json", "--fresh")
    assert code == 0 and len(found) == 2 and "photos: 2 of 2 found" in printed
    assert prepare("--annotations", "instances.json")[0] == 0, "the same input keeps the store"


def test_counts_of_what_is_left_out_stay_in_the_store(folder, prepare, capsys):
    coco_file(Path("instances.json"))
    prepare("--annotations", "instances.json")
    assert Store.open(Path("s")).meta["own"]["left_out"]["counts"] == {"box_only": 1}
    program(["data", "inspect", "s"])
    assert "left out: box_only 1" in capsys.readouterr().out
