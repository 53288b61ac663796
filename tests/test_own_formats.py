"""Own data: every rule in every format that it can occur in, on files that the tests write themselves."""

from __future__ import annotations

import base64
import csv
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pycocotools import mask as coco

from uniresxx.cli import main as program
from uniresxx.data.own.shapes import decode_brush
from uniresxx.data.store.photos import photo_of
from uniresxx.data.store.read import Store
from uniresxx.imaging import masks

W, H = 60, 40
TRIANGLE = [5.0, 5.0, 25.0, 6.0, 15.0, 20.0]
SQUARE = [30.0, 10.0, 50.0, 10.0, 50.0, 30.0, 30.0, 30.0]
LOW = [4.0, 24.0, 20.0, 24.0, 20.0, 36.0, 4.0, 36.0]
FLAT = [10.0, 10.0, 20.0, 10.0, 15.0, 10.0]


def drawn(*polygons, size=(H, W)):
    """OR of polygons as pycocotools fills them."""
    return coco.decode(coco.merge(coco.frPyObjects([list(p) for p in polygons], *size))).astype(bool)


def photo_at(path, size=(W, H), orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", size, (90, 120, 60)).save(path, exif=exif)


def pairs(polygon):
    return [[polygon[k], polygon[k + 1]] for k in range(0, len(polygon), 2)]


def shape(polygon=TRIANGLE, name="cup", photo="a.png", text=None, **more):
    return {"polygon": polygon, "name": name, "photo": photo, "text": text, **more}


# ---- writers: each writes the same shapes as one tool does and returns the words of the command


def write_coco(folder, shapes, size=(W, H), **_):
    names = list(dict.fromkeys(item["name"] for item in shapes))
    photos = list(dict.fromkeys(item["photo"] for item in shapes))
    rows = [
        {"id": k, "file_name": name, "width": size[0], "height": size[1]} for k, name in enumerate(photos)
    ]
    annotations = []
    for k, item in enumerate(shapes):
        row = {"id": k, "image_id": photos.index(item["photo"]), "category_id": names.index(item["name"]),
               "segmentation": [item["polygon"]] if item["polygon"] else [], "bbox": [1, 1, 9, 9]}  # fmt: skip
        row |= {} if item["text"] is None else {"attributes": {"Caption": item["text"]}}
        annotations.append(row | item.get("record", {}))
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    content = {"images": rows, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return ["--annotations", "instances.json"]


def write_labelme(folder, shapes, size=(W, H), **_):
    for photo in dict.fromkeys(item["photo"] for item in shapes):
        found = [
            {"label": item["name"], "points": pairs(item["polygon"]), "shape_type": "polygon",
             "group_id": None, "description": item["text"], **item.get("record", {})}
            for item in shapes if item["photo"] == photo
        ]  # fmt: skip
        content = {"shapes": found, "imagePath": photo, "imageWidth": size[0], "imageHeight": size[1]}
        stem = photo.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
        (folder / "photos" / f"{stem}.json").write_text(json.dumps(content))
    return []


def write_label_studio(folder, shapes, size=(W, H), **_):
    tasks = []
    for number, photo in enumerate(dict.fromkeys(item["photo"] for item in shapes)):
        results = []
        for k, item in enumerate(item for item in shapes if item["photo"] == photo):
            same = {"id": f"r{k}", "original_width": size[0], "original_height": size[1]}
            points = [[100 * x / size[0], 100 * y / size[1]] for x, y in pairs(item["polygon"])]
            value = {"points": points, "polygonlabels": [item["name"]]}
            if not item["polygon"]:
                value = {"x": 1, "y": 2, "width": 30, "height": 20, "rectanglelabels": [item["name"]]}
            results.append({**same, "type": "polygonlabels", "value": value, **item.get("record", {})})
            if item["text"] is not None:
                results.append({**same, "type": "textarea", "value": {"text": item["text"]}})
        data = {"image": f"/data/local-files/?d=some%2Ffolder/{photo}"}
        tasks.append({"id": number, "data": data, "annotations": [{"result": results}]})
    (folder / "export.json").write_text(json.dumps(tasks))
    return ["--annotations", "export.json"]


def write_yolo(folder, shapes, size=(W, H), **_):
    names = list(dict.fromkeys(item["name"] for item in shapes))
    (folder / "labels").mkdir(exist_ok=True)
    for photo in dict.fromkeys(item["photo"] for item in shapes):
        lines = []
        for item in (item for item in shapes if item["photo"] == photo):
            numbers = [v / size[k % 2] for k, v in enumerate(item["polygon"])] or [0.5, 0.5, 0.2, 0.2]
            lines.append(" ".join(map(str, [names.index(item["name"]), *numbers])))
        stem = photo.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
        (folder / "labels" / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(json.dumps({"names": dict(enumerate(names))}))
    return ["--annotations", "data.yaml"]


def via_regions(shapes, photo):
    for item in (item for item in shapes if item["photo"] == photo):
        xs, ys = item["polygon"][::2], item["polygon"][1::2]
        attributes = {"name": item["name"]} | ({} if item["text"] is None else {"text": item["text"]})
        outline = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        yield {"shape_attributes": outline, "region_attributes": attributes, **item.get("record", {})}


def write_via(folder, shapes, **_):
    photos = dict.fromkeys(item["photo"] for item in shapes)
    content = {f"{name}12": {"filename": name, "size": 12, "regions": list(via_regions(shapes, name))}
               for name in photos}  # fmt: skip
    (folder / "via.json").write_text(json.dumps(content))
    return ["--annotations", "via.json"]


def write_via_csv(folder, shapes, **_):
    table = io.StringIO()
    columns = ("filename", "file_size", "region_shape_attributes", "region_attributes")
    writer = csv.writer(table)
    writer.writerow(columns)
    for photo in dict.fromkeys(item["photo"] for item in shapes):
        for region in via_regions(shapes, photo):
            attributes = [json.dumps(region[key]) for key in ("shape_attributes", "region_attributes")]
            writer.writerow([photo, 12, *attributes])
    (folder / "via.csv").write_text(table.getvalue())
    return ["--annotations", "via.csv"]


def write_masks(folder, shapes, size=(W, H), **_):
    """Photos, mask PNGs and a CSV; names are written as sentences."""
    (folder / "masks").mkdir(exist_ok=True)
    rows = [["photo", "mask", "sentence"]]
    for k, item in enumerate(shapes):
        plane = drawn(item["polygon"], size=size[::-1])
        Image.fromarray(plane.astype(np.uint8) * 255).save(folder / "masks" / f"m{k}.png")
        rows.append([item["photo"], f"masks/m{k}.png", item["text"] or f"the {item['name']}"])
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    (folder / "sentences.csv").write_text(table.getvalue())
    return ["--sentences", "sentences.csv"]


WRITERS = {
    "coco": write_coco, "labelme": write_labelme, "label_studio": write_label_studio, "yolo": write_yolo,
    "via": write_via, "via_csv": write_via_csv, "masks": write_masks,
}  # fmt: skip
NAMED = [name for name in WRITERS if name != "masks"]
WITH_TEXT = [name for name in NAMED if name != "yolo"]
SIZED = ["coco", "labelme", "label_studio", "masks"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with a photo a.png."""
    monkeypatch.chdir(tmp_path)
    photo_at(Path("photos/a.png"))
    return Path()


@pytest.fixture
def prepare(capsys):
    """(exit code, output, {(split, photo, text): expression}) of `prepare own` with some words."""

    def run(*words, photos="photos", out="s"):
        command = ["--photos", photos, "--name", "mine", "--licence", "own", "--out", out, *map(str, words)]
        code = program(["data", "prepare", "own", *command])
        printed = "".join(capsys.readouterr())
        found = {}
        if code == 0:
            store = Store.open(Path(out))
            for split in store.splits:
                for record in store.records(split):
                    for item in record.expressions:
                        name = Path(record.path or record.inside.name).name
                        found[split, name, item.text] = item
        return code, printed, found

    return run


def mask_of(expression):
    return masks.decode(expression.rle)


def same(expression, *polygons, **more):
    np.testing.assert_array_equal(mask_of(expression), drawn(*polygons, **more))


def texts(found):
    return sorted(text for _, _, text in found)


# ---- sentences


@pytest.mark.parametrize("name", NAMED)
def test_a_name_that_comes_once_is_the_and_one_that_comes_again_is_all(folder, prepare, name):
    shapes = [shape(), shape(SQUARE), shape(LOW, name=" big plate "), shape(LOW, name="the lamp")]
    code, printed, found = prepare(*WRITERS[name](folder, shapes))
    assert code == 0, printed
    assert texts(found) == ["all cup", "the big plate", "the lamp"]
    same(found["train", "a.png", "all cup"], TRIANGLE, SQUARE)
    same(found["train", "a.png", "the big plate"], LOW)
    kinds = {text: str(item.granularity) for (_, _, text), item in found.items()}
    assert kinds == {"all cup": "multi", "the big plate": "object", "the lamp": "object"}


@pytest.mark.parametrize("name", WITH_TEXT)
def test_own_sentences_are_used_instead_of_the_name_and_blank_ones_are_none(folder, prepare, name):
    shapes = [
        shape(text=["the left cup", "a cup"]),
        shape(SQUARE, "plate", text="  "),
        shape(LOW, "jug", text="it"),
    ]
    if name == "labelme":
        shapes[0]["text"] = "the left cup"
        shapes.append(shape(LOW, "other", record={"attributes": {"text": "a cup"}}))
    _, _, found = prepare(*WRITERS[name](folder, shapes))
    assert texts(found) == ["a cup", "it", "the left cup", "the plate"]
    same(found["train", "a.png", "the left cup"], TRIANGLE)


@pytest.mark.parametrize("key", ["caption", "TEXT", "sentence", "Description", "expression"])
@pytest.mark.parametrize("place", ["record", "attributes", "list"])
def test_the_text_keys_of_coco(folder, prepare, key, place):
    record = {"record": {key: " it "}, "attributes": {"attributes": {key: "it"}},
              "list": {"attributes": [{"name": key, "value": "it"}]}}[place]  # fmt: skip
    _, _, found = prepare(*write_coco(folder, [shape(record=record)]))
    assert texts(found) == ["it"]


def test_a_name_counts_all_its_annotations_also_those_with_a_sentence(folder, prepare):
    _, _, found = prepare(*write_coco(folder, [shape(text="the left cup"), shape(SQUARE)]))
    assert texts(found) == ["all cup", "the left cup"]
    same(found["train", "a.png", "all cup"], TRIANGLE, SQUARE)


@pytest.mark.parametrize(
    ("category", "count", "phrase"),
    [("cup", 1, "the cup"), ("cup", 2, "all cup"), ("The Gate", 1, "The Gate"), ("an egg", 1, "an egg"),
     ("a", 1, "the a"), ("theatre", 1, "the theatre"), ("a cat", 2, "a cat")],
)  # fmt: skip
def test_what_a_name_becomes(category, count, phrase):
    from uniresxx.data.own.targets import phrase_of

    assert phrase_of(category, count) == phrase


@pytest.mark.parametrize("name", ["coco", "labelme", "label_studio", "yolo", "via"])
def test_neither_text_nor_name_is_counted(folder, prepare, name):
    code, printed, found = prepare(*WRITERS[name](folder, [shape(name=" "), shape(SQUARE, "plate")]))
    assert code == 0 and texts(found) == ["the plate"] and "no_sentence 1" in printed


@pytest.mark.parametrize(
    ("name", "record"),
    [("coco", {"parent": 7}), ("coco", {"attributes": {"Part": "wheel"}}), ("labelme", {"parent": "car"}),
     ("via", {"region_attributes": {"name": "cup", "parent": "car"}}), ("label_studio", {"parent": "car"})],
)  # fmt: skip
def test_a_parent_makes_a_part(folder, prepare, name, record):
    shapes = [shape(record=record), shape(SQUARE, "plate", record={"parent": " "})]
    _, _, found = prepare(*WRITERS[name](folder, shapes))
    kinds = {text: str(item.granularity) for (_, _, text), item in found.items()}
    assert kinds == {"the cup": "part", "the plate": "object"}


# ---- boxes, masks without a pixel, bad records


@pytest.mark.parametrize("name", ["coco", "label_studio", "yolo"])
def test_a_box_alone_is_counted_and_does_not_count_for_uniqueness(folder, prepare, name):
    code, printed, found = prepare(*WRITERS[name](folder, [shape([], "cup"), shape()]))
    assert (
        code == 0 and texts(found) == ["the cup"] and "box_only 1" in printed and "no_pixels" not in printed
    )


@pytest.mark.parametrize("segmentation", [None, [], [[]], {}, "", {"size": [H, W], "counts": []}])
def test_every_form_of_no_segmentation_is_a_box(folder, prepare, segmentation):
    record = {"segmentation": segmentation}
    _, printed, _ = prepare(*write_coco(folder, [shape(record=record), shape(SQUARE, "plate")]))
    assert "box_only 1" in printed
    _, printed, _ = prepare(
        *write_coco(folder, [shape(record=record | {"bbox": [1, 1, 0, 5]}), shape(SQUARE, "plate")]), out="t"
    )
    assert "no_pixels 1" in printed and "box_only" not in printed


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    "polygon", [FLAT, [-30.0, 5.0, -20.0, 5.0, -25.0, 15.0], [9e5, 5.0, 9e5, 9.0, 8e5, 7.0]]
)
def test_an_outline_without_a_pixel_is_counted(folder, prepare, name, polygon):
    code, printed, found = prepare(*WRITERS[name](folder, [shape(polygon), shape(SQUARE)]))
    assert code == 0 and texts(found) == ["the cup"] and "no_pixels 1" in printed
    same(found["train", "a.png", "the cup"], SQUARE)


@pytest.mark.parametrize("name", ["coco", "labelme", "label_studio", "via"])
def test_a_polygon_of_two_points_is_no_box(folder, prepare, name):
    _, printed, found = prepare(*WRITERS[name](folder, [shape([10.0, 12.0, 30.0, 20.0]), shape(SQUARE)]))
    assert texts(found) == ["the cup"] and "no_pixels 1" in printed and "box_only" not in printed


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("coco", {"segmentation": "what"}),
        ("coco", {"segmentation": [[1, 2, "x", 4, 5, 6]]}),
        ("coco", {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}),
        ("coco", {"segmentation": {"size": [H, W], "counts": [5, 5]}}),
        ("coco", {"segmentation": {"size": [H, W], "counts": "\u00e9"}}),
        ("labelme", {"points": [[1]]}),
        ("labelme", {"shape_type": "cube"}),
        ("labelme", {"shape_type": "mask", "mask": "no"}),
        ("label_studio", {"value": {"format": "rle", "rle": [0, 0, 1], "brushlabels": ["cup"]}}),
        ("label_studio", {"value": {"points": "x", "polygonlabels": ["cup"]}}),
        ("via", {"shape_attributes": {"name": "cube"}}),
        ("via", {"shape_attributes": {"name": "circle", "cx": 4}}),
    ],
)
def test_one_bad_record_never_hides_the_next(folder, prepare, name, record):
    words = WRITERS[name](
        folder, [shape(name="bad", record=record), shape(SQUARE, "plate"), shape(LOW, "jug")]
    )
    code, printed, found = prepare(*words)
    assert code == 0 and texts(found) == ["the jug", "the plate"] and "no_pixels 1" in printed, printed
    code, printed, _ = prepare(*words, "--strict", out="t")
    assert code == 2 and "--strict: no_pixels 1 would be left out" in printed and not Path("t").exists()


def test_records_that_are_none_are_counted(folder, prepare):
    words = write_coco(folder, [shape(record={"caption": "\ud800"}), shape(SQUARE, "plate")])
    content = json.loads(Path("instances.json").read_text())
    content["annotations"] += [None, [1], "x"]
    content["images"] += [None, {"id": 7}]
    Path("instances.json").write_text(json.dumps(content))
    _, printed, found = prepare(*words)
    assert texts(found) == ["the plate"] and "unreadable 4" in printed, printed


def test_a_bad_line_of_yolo_is_counted(folder, prepare):
    words = write_yolo(folder, [shape(), shape(SQUARE, "plate")])
    path = Path("labels/a.txt")
    path.write_text(path.read_text() + "\nx 1 2 3\n0.5 0.1 0.1 0.2 0.2 0.3 0.3\n0 0.1 0.1 0.2 0.2 0.3\n\n")
    _, printed, found = prepare(*words)
    assert texts(found) == ["the cup", "the plate"] and "unreadable 2" in printed and "no_pixels 1" in printed


def test_records_of_unknown_images_are_counted(folder, prepare):
    words = write_coco(
        folder, [shape(record={"image_id": "900"}), shape(SQUARE), shape(LOW, record={"image_id": None})]
    )
    _, printed, found = prepare(*words)
    assert texts(found) == ["the cup"] and "unknown_image 2" in printed


def test_nothing_left_is_refused_with_the_counts(folder, prepare):
    code, printed, _ = prepare(*write_coco(folder, [shape([])]))
    assert code == 2 and "nothing is left to ask" in printed and "box_only 1" in printed


# ---- photos


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_missing_photo_is_counted_once_and_the_others_stay(folder, prepare, name):
    shapes = [
        shape(),
        shape(SQUARE, "plate", "gone.png"),
        shape(LOW, "jug", "gone.png"),
        shape([], photo="gone.png"),
    ]
    if name not in ("coco", "label_studio", "yolo"):
        shapes.pop()  # has no boxes without an outline
    code, printed, found = prepare(*WRITERS[name](folder, shapes))
    assert code == 0 and texts(found) == ["the cup"], printed
    assert "missing_photo 1" in printed and "photos: 1 of 2 found, looked in photos" in printed
    assert "box_only" not in printed


@pytest.mark.parametrize("name", list(WRITERS))
def test_no_photo_at_all_is_refused(folder, prepare, name):
    code, printed, _ = prepare(
        *WRITERS[name](folder, [shape(photo="gone.png"), shape(SQUARE, photo="b.png")])
    )
    assert code == 2 and "0 of 2 found, looked in photos" in printed and not Path("s").exists()


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize("prefix", ["images\\", "../../media/", "C:\\Users\\me\\", "deadbeef-"])
def test_the_base_name_of_a_path_decides(folder, prepare, name, prefix):
    _, printed, found = prepare(*WRITERS[name](folder, [shape(photo=f"{prefix}a.png")]))
    assert texts(found) == ["the cup"], printed


def test_a_photo_with_the_full_name_comes_before_one_without_the_prefix(folder, prepare):
    photo_at(Path("photos/deadbeef-a.png"))
    _, _, found = prepare(*write_coco(folder, [shape(photo="deadbeef-a.png")]))
    assert list(found) == [("train", "deadbeef-a.png", "the cup")]


@pytest.mark.parametrize("name", ["coco", "label_studio", "via", "masks"])
def test_of_photos_of_one_name_the_path_decides(folder, prepare, name):
    photo_at(Path("photos/day/left/a.png"))
    photo_at(Path("photos/night/left/a.png"))
    code, _, _ = prepare(*WRITERS[name](folder, [shape(photo="D:\\set\\night\\left\\a.png")]))
    assert code == 0
    (record,) = Store.open(Path("s")).records("train")
    assert record.path.endswith("photos/night/left/a.png")


def test_a_photo_beside_its_file_comes_before_others_of_its_name(folder, prepare):
    for split in ("one", "two"):
        photo_at(Path(f"photos/{split}/b.png"), size=(W, H) if split == "one" else (H, W))
        content = {"shapes": [{"label": split, "points": pairs(TRIANGLE)}], "imagePath": "b.png"}
        Path(f"photos/{split}/b.json").write_text(json.dumps(content))
    _, _, found = prepare()
    assert sorted(found) == [("one", "b.png", "the one"), ("two", "b.png", "the two")]
    assert [mask_of(item).shape for item in found.values()] == [(H, W), (W, H)]


@pytest.mark.parametrize("name", list(WRITERS))
def test_names_are_compared_in_composed_form(folder, prepare, name):
    photo_at(Path("photos", unicodedata.normalize("NFD", "küche.png")))
    written = unicodedata.normalize("NFC", "küche.png")
    _, printed, found = prepare(*WRITERS[name](folder, [shape(photo=written)]))
    assert texts(found) == ["the cup"], printed


def test_a_mask_of_the_photos_name_is_not_taken_for_the_photo(folder, prepare):
    Path("masks").mkdir()
    Image.fromarray(drawn(TRIANGLE).astype(np.uint8)).save("masks/a.png")
    Path("sentences.csv").write_text("photo,mask,sentence\na.png,masks/a.png,it\n")
    _, _, _ = prepare("--sentences", "sentences.csv", photos=".")
    (record,) = Store.open(Path("s")).records("train")
    assert record.path.endswith("photos/a.png")


@pytest.mark.parametrize("suffix", ["TIF", "tiff", "bmp", "webp", "JPG"])
def test_photos_in_every_format(folder, prepare, suffix):
    photo_at(Path(f"photos/b.{suffix}"))
    code, printed, _ = prepare(*write_coco(folder, [shape(photo=f"b.{suffix}")]), "--pack-images")
    assert code == 0, printed
    store = Store.open(Path("s"))
    assert photo_of(store[0]).shape == (H, W, 3) and program(["data", "verify", "s"]) == 0


@pytest.mark.parametrize("name", ["coco", "labelme", "masks", "brush"])
def test_an_annotation_of_another_size_is_left_out(folder, prepare, name):
    other = shape(SQUARE, "plate", "b.png")
    photo_at(Path("photos/b.png"), size=(W + 2, H))
    if name == "brush":
        pixels = np.ones((H, W, 4), np.uint8).ravel().tolist()
        value = {"format": "rle", "rle": brush_code(pixels, literal=False), "brushlabels": ["plate"]}
        other["record"] = {"value": value}
    words = WRITERS["label_studio" if name == "brush" else name](folder, [shape(), other])
    code, printed, found = prepare(*words)
    assert code == 0 and texts(found) == ["the cup"] and "other_size 1" in printed, printed
    assert "40 x 60 (height x width), the photo is 40 x 62" in printed


@pytest.mark.parametrize("name", ["yolo", "label_studio"])
def test_shares_of_a_photo_fit_every_size(folder, prepare, name):
    photo_at(Path("photos/b.png"), size=(2 * W, 2 * H))
    _, _, found = prepare(*WRITERS[name](folder, [shape(photo="b.png")]))
    same(found["train", "b.png", "the cup"], [2 * value for value in TRIANGLE], size=(2 * H, 2 * W))


# ---- EXIF


def turned(plane, orientation):
    """A plane of the stored frame as a viewer shows it (Pillow's own turning)."""
    image = Image.fromarray(plane.astype(np.uint8) * 255)
    exif = image.getexif()
    exif[0x112] = orientation
    data = io.BytesIO()
    image.save(data, "PNG", exif=exif)
    return np.asarray(ImageOps.exif_transpose(Image.open(data))) > 0


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("frame", ["raw", "upright"])
def test_sizes_tell_the_frame_and_masks_are_stored_upright(folder, prepare, capsys, name, orientation, frame):
    photo_at(Path("photos/p.jpg"), orientation=orientation)  # stored W x H, seen H x W
    size = (W, H) if frame == "raw" else (H, W)
    polygon = [5.0, 5.0, 25.0, 6.0, 15.0, 20.0]
    code, printed, found = prepare(*WRITERS[name](folder, [shape(polygon, photo="p.jpg")], size=size))
    assert code == 0 and f"1 in the {frame} frame" in printed, printed
    plane = drawn(polygon, size=size[::-1])
    expected = turned(plane, orientation) if frame == "raw" else plane
    np.testing.assert_array_equal(mask_of(found["train", "p.jpg", "the cup"]), expected)
    assert program(["data", "verify", "s"]) == 0
    assert f"orientation: 1; annotated: 1 in the {frame} frame; shown" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["yolo", "via"])
@pytest.mark.parametrize("frame", ["raw", "upright", None])
def test_formats_without_sizes_are_read_upright_or_as_they_are_told(folder, prepare, name, frame):
    photo_at(Path("photos/p.jpg"), orientation=6)
    size = (W, H) if frame == "raw" else (H, W)
    words = WRITERS[name](folder, [shape(photo="p.jpg")], size=size)
    _, printed, found = prepare(*words, *(["--frame", frame] if frame else []))
    plane = drawn(TRIANGLE, size=size[::-1])
    expected = turned(plane, 6) if frame == "raw" else plane
    np.testing.assert_array_equal(mask_of(found["train", "p.jpg", "the cup"]), expected)
    assert f"in the {frame or 'upright'} frame" in printed


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_where_sizes_tell_nothing_the_other_photos_do(folder, prepare, orientation):
    photo_at(Path("photos/p.jpg"), orientation=orientation)
    photo_at(Path("photos/q.jpg"), orientation=6)
    words = write_coco(folder, [shape(photo="p.jpg"), shape(photo="q.jpg")])  # W x H: raw for q
    _, _, found = prepare(*words)
    expected = turned(drawn(TRIANGLE), orientation)
    np.testing.assert_array_equal(mask_of(found["train", "p.jpg", "the cup"]), expected)
    _, _, found = prepare(*write_coco(folder, [shape(photo="p.jpg")]), out="t")
    same(found["train", "p.jpg", "the cup"], TRIANGLE)


# ---- forms of masks


def runs_of(plane):
    flat = plane.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flat, [0]))))
    return [int(n) for n in np.diff(np.concatenate(([0], edges, [flat.size])))][: len(edges) + 1]


def bits_of(*pairs_of_value_and_width):
    return "".join(format(value, f"0{width}b") for value, width in pairs_of_value_and_width)


def brush_code(values, literal):
    """Label Studio's code of some values, written from its published decoder."""
    text = bits_of((len(values), 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4))
    start = 0
    while start < len(values):
        stop = start + 1
        while stop < len(values) and stop - start < 60000 and (literal or values[stop] == values[start]):
            stop += 1
        which = next(k for k, width in enumerate((3, 4, 8, 16)) if stop - start - 1 < 2**width)
        length = (stop - start - 1, (3, 4, 8, 16)[which])
        if literal:
            text += bits_of((0, 1), (which, 2), length, *((v, 8) for v in values[start:stop]))
        else:
            text += bits_of((1, 1), (which, 2), length, (values[start], 8))
        start = stop
    text += "0" * (-len(text) % 8)
    return [int(text[k : k + 8], 2) for k in range(0, len(text), 8)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=200), st.booleans())
def test_the_brush_code_is_read_back(values, literal):
    assert decode_brush(brush_code(values, literal), len(values)).tolist() == values


@pytest.mark.parametrize("form", ["list", "floats", "text", "list of codes", "brush", "brush of two results"])
def test_every_form_of_run_lengths(folder, prepare, form):
    plane = drawn(TRIANGLE)
    packed = coco.encode(np.asfortranarray(plane.astype(np.uint8)))["counts"].decode()
    codes = {
        "list": {"size": [H, W], "counts": runs_of(plane)},
        "floats": {"size": [float(H), float(W)], "counts": [float(n) for n in runs_of(plane)]},
        "text": {"size": [H, W], "counts": packed},
        "list of codes": [{"size": [H, W], "counts": packed}, {"size": [H, W], "counts": runs_of(plane)}],
    }
    if form in codes:
        words = write_coco(folder, [shape(record={"segmentation": codes[form], "iscrowd": 1})])
    else:
        pixels = np.repeat(plane[..., None].astype(np.uint8), 4, axis=2) * 7
        value = {"format": "rle", "rle": brush_code(pixels.ravel().tolist(), literal=False)}
        same_id = {"id": "r", "original_width": W, "original_height": H}
        results = [{**same_id, "type": "brush", "value": value | {"brushlabels": ["cup"]}}]
        if form == "brush of two results":
            results = [{**same_id, "type": "labels", "value": value | {"labels": ["cup"]}},
                       {**same_id, "type": "brush", "value": value}]  # fmt: skip
        tasks = [
            {"id": 1, "data": {"picture": "s3://bucket/a.png?x=1"}, "annotations": [{"result": results}]}
        ]
        Path("export.json").write_text(json.dumps(tasks))
        words = ["--annotations", "export.json"]
    _, printed, found = prepare(*words)
    assert texts(found) == ["the cup"], printed
    same(found["train", "a.png", "the cup"], TRIANGLE)


def test_polygons_and_run_lengths_of_one_annotation_are_united(folder, prepare):
    code = {"size": [H, W], "counts": runs_of(drawn(SQUARE))}
    record = {"segmentation": [TRIANGLE, code, [1, 2], LOW]}
    _, _, found = prepare(*write_coco(folder, [shape(record=record)]))
    same(found["train", "a.png", "the cup"], TRIANGLE, SQUARE, LOW)
    _, _, found = prepare(*write_coco(folder, [shape(record={"segmentation": SQUARE})]), out="t")
    same(found["train", "a.png", "the cup"], SQUARE)


def circle(x, y, r):
    count = max(int(np.pi / np.arccos(1 - 1 / r)), 12)
    angles = 2 * np.pi / count * np.arange(count)
    return np.stack((x + r * np.sin(angles), y + r * np.cos(angles)), axis=1).ravel().tolist()


@pytest.mark.parametrize("radius", [3.0, 9.5])
def test_rectangles_and_circles_are_polygons(folder, prepare, radius):
    rectangle = {"shape_type": "rectangle", "points": [[50, 30], [30, 10]]}
    round_one = {"shape_type": "circle", "points": [[20, 20], [20, 20 + radius]]}
    _, _, found = prepare(
        *write_labelme(folder, [shape(name="box", record=rectangle), shape(name="ring", record=round_one)])
    )
    same(found["train", "a.png", "the box"], [50, 30, 30, 30, 30, 10, 50, 10])
    same(found["train", "a.png", "the ring"], circle(20, 20, radius))
    rect = {"shape_attributes": {"name": "rect", "x": 30, "y": 10, "width": 20, "height": 20}}
    ring = {"shape_attributes": {"name": "circle", "cx": 20, "cy": 20, "r": radius}}
    _, _, found = prepare(
        *write_via(folder, [shape(name="box", record=rect), shape(name="ring", record=ring)]), out="t"
    )
    same(found["train", "a.png", "the box"], SQUARE)
    same(found["train", "a.png", "the ring"], circle(20, 20, radius))


@pytest.mark.parametrize(
    ("name", "record"),
    [("labelme", {"shape_type": kind}) for kind in ("point", "line", "linestrip", "points")]
    + [("labelme", {"shape_type": "circle", "points": [[5, 5], [5, 5]]})]
    + [("via", {"shape_attributes": {"name": kind}}) for kind in ("point", "polyline")]
    + [("label_studio", {"value": {"x": 5, "y": 5, "width": 0.7, "keypointlabels": ["cup"]}})],
)
def test_shapes_without_area_have_no_pixels(folder, prepare, name, record):
    _, printed, found = prepare(*WRITERS[name](folder, [shape(record=record), shape(SQUARE, "plate")]))
    assert texts(found) == ["the plate"] and "no_pixels 1" in printed


def test_labelme_joins_the_shapes_of_a_label_and_a_group(folder, prepare):
    shapes = [
        shape(record={"group_id": 0}, text="it"), shape(SQUARE, record={"group_id": 0}),
        shape(record={"group_id": 0, "shape_type": "point"}), shape(LOW, "plate", record={"group_id": 0}),
        shape(LOW, "jug"), shape(TRIANGLE, "jug"),
    ]  # fmt: skip
    _, printed, found = prepare(*write_labelme(folder, shapes))
    assert texts(found) == ["all jug", "it", "the plate"] and "left out" not in printed
    same(found["train", "a.png", "it"], TRIANGLE, SQUARE)


@pytest.mark.parametrize("corner", [(10, 5), (-3, -4), (50, 33)])
def test_a_mask_of_labelme_lies_at_its_corner(folder, prepare, corner):
    data = io.BytesIO()
    Image.new("1", (12, 9), 1).save(data, "PNG")
    x, y = corner
    record = {"shape_type": "mask", "mask": base64.b64encode(data.getvalue()).decode(),
              "points": [[x, y], [x + 11, y + 8]]}  # fmt: skip
    _, _, found = prepare(*write_labelme(folder, [shape(record=record)]))
    expected = np.zeros((H, W), bool)
    expected[max(y, 0) : y + 9, max(x, 0) : x + 12] = True
    np.testing.assert_array_equal(mask_of(found["train", "a.png", "the cup"]), expected)


def test_cancelled_annotations_and_predictions_of_label_studio_do_not_count(folder, prepare):
    write_label_studio(folder, [shape()])
    (task,) = json.loads(Path("export.json").read_text())
    task["annotations"].append(task["annotations"][0] | {"was_cancelled": True})
    task["predictions"] = [task["annotations"][0]]
    Path("export.json").write_text(json.dumps([task]))
    _, _, found = prepare("--annotations", "export.json")
    assert texts(found) == ["the cup"]


def test_label_studio_as_json_min(folder, prepare):
    value = {"points": [[100 * x / W, 100 * y / H] for x, y in pairs(TRIANGLE)], "polygonlabels": ["cup"],
             "original_width": W, "original_height": H}  # fmt: skip
    Path("export.json").write_text(json.dumps([{"image": "/data/upload/1/a.png", "id": 3, "tag": [value]}]))
    _, _, found = prepare("--annotations", "export.json")
    same(found["train", "a.png", "the cup"], TRIANGLE)


# ---- anything at all

ODD = [
    *(None, True, -1, 1e308, float("nan"), "", "\ud800", "a\0b", "../../x", "9" * 400, 10**30),
    *([], {}, [[]], [None], {"a": 1}, [1, 2, 3], {"size": [1, 2], "counts": [3]}),
]


def places(content, path=()):
    yield path
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def with_value(content, path, value):
    if not path:
        return value
    changed = content.copy()
    changed[path[0]] = with_value(content[path[0]], path[1:], value)
    return changed


@pytest.mark.parametrize("name", ["coco", "labelme", "label_studio", "via"])
def test_no_value_anywhere_ends_in_a_traceback(folder, name, capsys):
    from uniresxx.data.own.given import look
    from uniresxx.data.own.records import read_own
    from uniresxx.errors import InputError

    WRITERS[name](folder, [shape(text="it"), shape(SQUARE, "plate")])
    (file,) = [*folder.glob("*.json"), *folder.glob("photos/*.json")]
    content = json.loads(file.read_text())
    for path in places(content):
        for value in ODD:
            file.write_text(json.dumps(with_value(content, path, value)))
            try:
                read_own(look(Path("photos"), [file], []), Path("photos"), "mine", "own", None)
            except InputError as error:
                assert "\n" not in str(error)
