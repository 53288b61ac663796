"""Exports: every format against its schema, read back to the very masks, with every option."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from uniresxx import annotations
from uniresxx.annotations import FORMATS, AnnotatedImage, AnnotatedMask, Options, Provenance, write
from uniresxx.cli import main as program
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction

SCHEMAS = Path(__file__).parent / "data" / "annotations"
H, W = 48, 64
MADE = Provenance("runs/demo", "0123456789abcdef" * 4, "0.1.0")
ys, xs = np.mgrid[:H, :W]
RING = ((ys - 20) ** 2 + (xs - 20) ** 2 < 200) & ((ys - 20) ** 2 + (xs - 20) ** 2 > 40)
LID = (ys > 16) & (ys < 30) & (xs > 16) & (xs < 50)
PAIR = ((ys < 6) & (xs < 9)) | ((ys > 40) & (xs > 50))
DOT = (ys == 3) & (xs == 60)


def answer(mask, category, sentence=None, score=0.5, p_absent=0.25):
    rle = None if mask is None else masks.encode(mask)
    return AnnotatedMask(rle, category, sentence or f'the "{category}" & more', score, p_absent)


def photos(folder: Path) -> list[AnnotatedImage]:
    """Three photos with masks of every kind: a hole, two regions, overlap, one pixel, not there, nothing."""
    found = {
        "a.png": (
            answer(RING, "ring", score=0.6),
            answer(LID, "lid", score=0.9),
            answer(None, "cat", score=None),
        ),
        "more/b b.png": (answer(PAIR, "pair", score=None, p_absent=None), answer(DOT, "dot")),
        "more/c.png": (),
    }
    for name in found:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (W, H), (90, 120, 60)).save(folder / name)
    return [AnnotatedImage(str(folder / name), H, W, answers) for name, answers in found.items()]


def as_json(element: ElementTree.Element):
    """An XML element as the schemas see it."""
    record: dict = dict(element.attrib)
    for child in element:
        record.setdefault(child.tag, []).append(as_json(child))
    text = (element.text or "").strip()
    if element.tag == "version":
        return {"text": text}
    return record | (
        {"text": text} if text or (element.tag == "attribute" and "name" in element.attrib) else {}
    )


def check(name: str, content) -> None:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)


def exported(tmp_path: Path, name: str, images=None, **options) -> Path:
    out = tmp_path / "out"
    write(
        name,
        photos(tmp_path / "photos") if images is None else images,
        out,
        provenance=MADE,
        options=Options(**options),
    )
    return out


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_of_its_schema(tmp_path, name, tolerance):
    images, out = photos(tmp_path / "photos"), tmp_path / "out"
    files = write(name, images, out, provenance=MADE, options=Options(tolerance=tolerance))
    assert sorted(files) == sorted(path for path in out.rglob("*") if path.is_file())
    assert files[-1].name == "provenance.json" and len(set(files)) == len(files)
    for path in files:
        match path.name, path.suffix:
            case "labels.json", _:
                check("cvat_labels", json.loads(path.read_text()))
            case "metadata.json", _:
                check("fiftyone_metadata", json.loads(path.read_text()))
            case "provenance.json", _:
                check("provenance", json.loads(path.read_text()))
            case _, ".json":
                check(name, json.loads(path.read_text()))
            case "labeling_config.xml", _:
                check("labelstudio_config", as_json(ElementTree.parse(path).getroot()))
            case _, ".xml":
                check("cvat", as_json(ElementTree.parse(path).getroot()))
            case _, ".yaml":
                check("yolo", json.loads(json.dumps(yaml.safe_load(path.read_text()))))
            case _:
                assert path.suffix in (".txt", ".png")


def test_the_schemas_are_strict():
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        for nothing in ({"unknown": 1}, 7, [7]):
            with pytest.raises(jsonschema.ValidationError):
                check(path.stem, nothing)


# ---- each format read back


def test_coco_is_read_by_pycocotools(tmp_path):
    found = COCO(exported(tmp_path, "coco") / "instances.json")
    names = {item["id"]: item["name"] for item in found.dataset["categories"]}
    assert names == {1: "cat", 2: "dot", 3: "lid", 4: "pair", 5: "ring"}
    assert [item["file_name"] for item in found.dataset["images"]] == ["a.png", "more/b b.png", "more/c.png"]
    for item, mask, category in zip(
        found.dataset["annotations"], (RING, LID, PAIR, DOT), ("ring", "lid", "pair", "dot"), strict=True
    ):
        np.testing.assert_array_equal(found.annToMask(item), mask)
        assert names[item["category_id"]] == category and item["area"] == mask.sum()
        assert item["attributes"]["sentence"] == f'the "{category}" & more'
        assert item["attributes"]["model"] == "runs/demo@0123456789ab"
        left, top, width, height = item["bbox"]
        assert mask[top : top + height, left : left + width].sum() == mask.sum()
        assert mask[:, left].any() and mask[top].any()


def test_with_a_tolerance_coco_has_polygons_where_there_is_no_hole(tmp_path):
    found = json.loads((exported(tmp_path, "coco", tolerance=1.0) / "instances.json").read_text())
    kinds = [type(item["segmentation"]).__name__ for item in found["annotations"]]
    assert kinds == ["dict", "list", "list", "list"]
    assert [len(item["segmentation"]) for item in found["annotations"][1:]] == [1, 2, 1]


def test_supervision_has_lists_of_runs(tmp_path):
    for item, mask in zip(
        json.loads((exported(tmp_path, "supervision") / "instances.json").read_text())["annotations"],
        (RING, LID, PAIR, DOT),
        strict=True,
    ):
        runs = item["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        np.testing.assert_array_equal(flat.reshape(W, H).T, mask)


def test_a_mask_of_cvat_is_the_runs_of_its_box(tmp_path):
    root = ElementTree.parse(exported(tmp_path, "cvat") / "annotations.xml").getroot()
    found = root.findall("image/mask")
    assert [item.get("label") for item in found] == ["ring", "lid", "pair", "dot"]
    for item, mask in zip(found, (RING, LID, PAIR, DOT), strict=True):
        left, top, width, height = (int(item.attrib[key]) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in item.attrib["rle"].split(",")]
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        whole = np.zeros((H, W), dtype=bool)
        whole[top : top + height, left : left + width] = flat.reshape(height, width)
        np.testing.assert_array_equal(whole, mask)
    attributes = {item.get("name"): item.text for item in found[0]}
    assert attributes == {"sentence": 'the "ring" & more', "score": "0.6", "p_absent": "0.25",
                          "model": "runs/demo@0123456789ab"}  # fmt: skip


def test_cvat_with_a_tolerance_has_polygons(tmp_path):
    root = ElementTree.parse(exported(tmp_path, "cvat", tolerance=1.0) / "annotations.xml").getroot()
    assert [item.get("label") for item in root.findall("image/mask")] == ["ring"]
    polygons = root.findall("image/polygon")
    assert [item.get("label") for item in polygons] == ["lid", "pair", "pair", "dot"]
    assert [item.get("group_id") for item in polygons] == [None, "1", "1", None]
    points = [tuple(map(float, point.split(","))) for point in polygons[0].attrib["points"].split(";")]
    assert points == [(17, 17), (50, 17), (50, 30), (17, 30)]


def test_a_mask_of_fiftyone_lies_in_its_box(tmp_path):
    samples = json.loads((exported(tmp_path, "fiftyone") / "samples.json").read_text())["samples"]
    assert [Path(item["filepath"]).is_file() for item in samples] == [True] * 3
    found = [item for sample in samples for item in sample["predictions"]["detections"]]
    assert [item["label"] for item in found] == ["ring", "lid", "pair", "dot"]
    for item, mask in zip(found, (RING, LID, PAIR, DOT), strict=True):
        left, top, width, height = np.round(np.array(item["bounding_box"]) * (W, H, W, H)).astype(int)
        file = zlib.decompress(base64.b64decode(item["mask"]["$binary"]["base64"]))
        whole = np.zeros((H, W), dtype=bool)
        whole[top : top + height, left : left + width] = np.load(io.BytesIO(file))
        np.testing.assert_array_equal(whole, mask)
    assert (found[0]["confidence"], found[2]["confidence"], found[0]["sentence"]) == (
        0.6,
        None,
        'the "ring" & more',
    )


def test_an_indexed_png_holds_the_numbers_of_the_classes(tmp_path):
    out = exported(tmp_path, "voc-png")
    with Image.open(out / "SegmentationClass" / "a.png") as picture:
        assert picture.mode == "P" and picture.size == (W, H)
        assert picture.text == {"Source": "runs/demo@0123456789ab"}
        assert picture.getpalette()[:15] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128]
        classes = np.array(picture)
    expected = np.zeros((H, W), dtype=int)
    expected[RING], expected[LID] = 5, 3  # the lid has the higher score
    np.testing.assert_array_equal(classes, expected)
    assert (out / "labelmap.txt").read_text().splitlines()[1:3] == ["background:0,0,0::", "cat:128,0,0::"]


def test_yolo_numbers_from_zero_and_keeps_a_mask_in_one_line(tmp_path):
    out = exported(tmp_path, "yolo")
    assert yaml.safe_load((out / "data.yaml").read_text())["names"] == dict(
        enumerate(("cat", "dot", "lid", "pair", "ring"))
    )
    assert (out / "labels" / "more" / "c.txt").read_text() == ""
    lines = [
        line.split()
        for name in ("a.txt", "more/b b.txt")
        for line in (out / "labels" / name).read_text().splitlines()
    ]
    assert [line[0] for line in lines] == ["4", "2", "3", "1"]
    for line, mask in zip(lines, (RING, LID, PAIR, DOT), strict=True):
        corners = np.array(line[1:], dtype=float).reshape(-1, 2) * (W, H)
        np.testing.assert_array_equal(masks.decode(masks.from_polygons([corners.ravel()], H, W)), mask)


# ---- round trip through the readers of own data


@pytest.fixture
def prepared(tmp_path, capsys):
    """{(photo, sentence): mask} of `uniresxx data prepare own` with an annotation file."""

    def run(annotation_file: Path) -> dict:
        words = ["--photos", tmp_path / "photos", "--annotations", annotation_file, "--name", "mine"]
        command = [*words, "--licence", "own", "--strict", "--out", tmp_path / "store"]
        assert program(["data", "prepare", "own", *map(str, command)]) == 0, capsys.readouterr().err
        store = Store.open(tmp_path / "store")
        return {
            (Path(record.path).name, item.text): masks.decode(item.rle)
            for split in store.splits
            for record in store.records(split)
            for item in record.expressions
        }

    return run


def accepted(path: Path) -> Path:
    """Label Studio's tasks after a person accepted every prediction."""
    tasks = json.loads(path.read_text())
    for task in tasks:
        task["annotations"] = [{"result": item["result"]} for item in task.pop("predictions")]
    path.write_text(json.dumps(tasks))
    return path


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
@pytest.mark.parametrize("name", ["coco", "supervision", "labelstudio", "yolo"])
def test_own_data_reads_what_was_written(tmp_path, prepared, name, tolerance):
    out = exported(tmp_path, name, tolerance=tolerance)
    file = {"labelstudio": "tasks.json", "yolo": "data.yaml"}.get(name, "instances.json")
    found = prepared(accepted(out / file) if name == "labelstudio" else out / file)
    wanted = {
        ("a.png", "ring"): RING,
        ("a.png", "lid"): LID,
        ("b b.png", "pair"): PAIR,
        ("b b.png", "dot"): DOT,
    }
    sentence = "the {}" if name == "yolo" else 'the "{}" & more'
    if name == "labelstudio" and tolerance:
        wanted.pop(("b b.png", "pair"))  # two polygons of one sentence are two annotations there
    for (photo, category), mask in wanted.items():
        read = found[photo, sentence.format(category)]
        if tolerance:
            assert (read & mask).sum() >= 0.9 * (read | mask).sum()
        else:
            np.testing.assert_array_equal(read, mask)


# ---- options


def coco_masks(tmp_path: Path, images, **options) -> dict[str, np.ndarray]:
    found = json.loads((exported(tmp_path, "coco", images, **options) / "instances.json").read_text())
    names = {item["id"]: item["name"] for item in found["categories"]}
    return {names[item["category_id"]]: masks.decode(masks.from_coco(item["segmentation"], H, W))
            for item in found["annotations"]}  # fmt: skip


def one_photo(*answers) -> list[AnnotatedImage]:
    return [AnnotatedImage("a.png", H, W, answers)]


def test_holes_are_kept_or_filled(tmp_path):
    images = one_photo(answer(RING, "ring"))
    np.testing.assert_array_equal(coco_masks(tmp_path, images)["ring"], RING)
    filled = coco_masks(tmp_path, images, holes="fill")["ring"]
    np.testing.assert_array_equal(filled, (ys - 20) ** 2 + (xs - 20) ** 2 < 200)


def test_regions_below_the_smallest_area_are_left_out(tmp_path):
    images = one_photo(answer(LID | DOT, "lid"), answer(DOT, "dot"))
    found = coco_masks(tmp_path, images, min_area=2)
    assert list(found) == ["lid"]
    np.testing.assert_array_equal(found["lid"], LID)
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())
    pixels = [(item["pixels"], item["pixels_written"]) for item in about["photos"][0]["answers"]]
    assert pixels == [(LID.sum() + 1, LID.sum()), (1, 0)]


@pytest.mark.parametrize(
    ("overlap", "ring", "lid"),
    [("keep", RING, LID), ("score", RING & ~LID, LID), ("order", RING, LID & ~RING)],
)
def test_the_overlap_of_two_categories(tmp_path, overlap, ring, lid):
    images = one_photo(answer(RING, "ring", score=0.6), answer(LID, "lid", score=0.9))
    found = coco_masks(tmp_path, images, overlap=overlap)
    np.testing.assert_array_equal(found["ring"], ring)
    np.testing.assert_array_equal(found["lid"], lid)


def test_masks_of_one_category_share_their_pixels(tmp_path):
    images = one_photo(answer(RING, "cup", "the left cup"), answer(LID, "cup", "the right cup"))
    out = exported(tmp_path, "coco", images, overlap="score")
    found = json.loads((out / "instances.json").read_text())
    assert [item["area"] for item in found["annotations"]] == [RING.sum(), LID.sum()]


def test_classes_keep_their_numbers_and_names_may_share_one(tmp_path):
    images = one_photo(answer(RING, "mug"), answer(LID, "cup"))
    write("coco", images, tmp_path, classes={"cup": 7, "mug": 7, "jug": 3}, provenance=MADE)
    found = json.loads((tmp_path / "instances.json").read_text())
    assert found["categories"] == [{"id": 3, "name": "jug"}, {"id": 7, "name": "cup"}]
    assert [item["category_id"] for item in found["annotations"]] == [7, 7]
    write("yolo", images, tmp_path, classes={"cup": 2, "mug": 0}, provenance=MADE)
    names = yaml.safe_load((tmp_path / "data.yaml").read_text())["names"]
    assert names == {0: "mug", 1: "unused 1", 2: "cup"}


def test_provenance_lists_every_answer(tmp_path):
    about = json.loads((exported(tmp_path, "voc-png") / "provenance.json").read_text())
    assert about["model"] == MADE.model and about["weights_sha256"] == MADE.weights_sha256
    ring, lid, cat = about["photos"][0]["answers"]
    assert cat == {"sentence": 'the "cat" & more', "category": "cat", "category_id": 1, "score": None,
                   "p_absent": 0.25, "pixels": 0, "pixels_written": 0}  # fmt: skip
    assert ring["pixels"] == RING.sum() and ring["pixels_written"] == (RING & ~LID).sum()
    assert lid["pixels_written"] == LID.sum()
    assert [photo["name"] for photo in about["photos"]] == ["a.png", "more/b b.png", "more/c.png"]


def test_an_export_replaces_the_earlier_one_and_nothing_else(tmp_path):
    write("yolo", photos(tmp_path / "photos"), tmp_path / "out", provenance=MADE)
    for name in ("labels/mine.txt", "mine.txt"):
        (tmp_path / "out" / name).write_text("mine")
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())
    about["files"] += ["../photos/a.png", str(tmp_path / "photos" / "a.png"), "gone.txt"]
    (tmp_path / "out" / "provenance.json").write_text(json.dumps(about))
    write("coco", photos(tmp_path / "photos")[:1], tmp_path / "out", provenance=MADE)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    new = {"out/instances.json", "out/provenance.json"}
    own = {"out/labels/mine.txt", "out/mine.txt", "photos/a.png", "photos/more/b b.png", "photos/more/c.png"}
    assert left == new | own


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_without_a_photo_is_written(tmp_path, name):
    assert all(path.is_file() for path in write(name, [], tmp_path, provenance=MADE))


@pytest.mark.parametrize("name", FORMATS)
def test_odd_names_are_kept_readable(tmp_path, name):
    """Control characters, quotes and colons of a sentence break no file."""
    odd = 'a "<b>"\x00 & \x1b[31m: größe 猫'
    images = [AnnotatedImage("ü & <x>.png", H, W, (AnnotatedMask(masks.encode(LID), odd, odd),))]
    for path in write(name, images, tmp_path, provenance=MADE):
        if path.suffix == ".xml":
            ElementTree.parse(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text())["names"] == {0: odd}


@pytest.mark.parametrize(
    ("name", "images", "classes", "reason"),
    [
        ("tiff", [], None, "unknown format 'tiff'; known are coco, "),
        ("coco", one_photo(answer(LID, "lid")), {"ring": 1}, "'lid' has no id"),
        ("coco", one_photo(answer(LID, "lid")), {"lid": -1}, "'lid' is -1"),
        ("coco", one_photo(answer(LID[:9], "lid")), None, "a.png: "),
        ("coco", one_photo() * 2, None, "a.png: comes twice"),
        ("voc-png", one_photo(answer(LID, "lid")), {"lid": 255}, "holds 1 to 254"),
        ("voc-png", one_photo(answer(LID, "lid")), {"lid": 0}, "0 is background"),
        ("yolo", one_photo(answer(LID, "lid")), {"lid": 5000}, "without gaps"),
        (
            "yolo",
            [AnnotatedImage(f"a.{end}", H, W, ()) for end in ("png", "jpg")],
            None,
            "share the file a.txt",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, images, classes, reason):
    with pytest.raises(InputError, match=reason) as error:
        write(name, images, tmp_path, classes=classes, provenance=MADE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "option",
    [{"tolerance": -1}, {"tolerance": float("nan")}, {"min_area": -1}, {"holes": "cut"}, {"overlap": "both"}],
)
def test_an_option_that_is_none_is_refused(option):
    with pytest.raises(InputError):
        Options(**option)


def test_a_prediction_becomes_an_answer():
    rle = masks.encode(LID)
    there = AnnotatedMask.of("the lid", Prediction(rejected=False, rle=rle, text="", score=0.5, p_absent=0.1))
    assert there == AnnotatedMask(rle, "the lid", "the lid", 0.5, 0.1)
    absent = AnnotatedMask.of("the cat", Prediction(rejected=True, rle=rle, text=""), "cat")
    assert absent == AnnotatedMask(None, "cat", "the cat")


def test_the_package_is_found_under_its_name():
    assert annotations.write is write  # `from __future__ import annotations` has the same name
