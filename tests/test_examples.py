"""The examples: on photos of pure colours, against stubs of CVAT's and Label Studio's own interfaces."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from examples import compare_two_models, finetune_own_classes, folder_to_coco
from uniresxx import InputError, Predictor
from uniresxx.data.own.shapes import decode_brush
from uniresxx.imaging import masks
from uniresxx.testing import COLOURS, ColourSegmenter

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
H, W = 40, 60
PARTS = {"red": (slice(4, 20), slice(5, 25)), "blue": (slice(10, 36), slice(35, 55))}


def mask_of(colour: str) -> np.ndarray:
    mask = np.zeros((H, W), dtype=bool)
    mask[PARTS[colour]] = True
    return mask


def photo(path: Path, *colours: str) -> Path:
    pixels = np.full((H, W, 3), 255, dtype=np.uint8)
    for colour in colours:
        pixels[mask_of(colour)] = COLOURS[colour]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> str:
    """A folder that looks like a checkpoint; the model that is loaded from it knows pure colours."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(Predictor, "from_pretrained", lambda path, **_: Predictor(ColourSegmenter()))
    return str(folder)


def test_a_folder_becomes_a_coco_file(tmp_path, checkpoint, capsys):
    photo(tmp_path / "photos" / "a.png", "red", "blue")
    photo(tmp_path / "photos" / "more" / "b.png", "blue")
    words = [str(tmp_path / "photos"), "the red thing", "the blue thing", "--checkpoint", checkpoint]
    assert folder_to_coco.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("2 photos, 3 masks: ")
    found = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [item["file_name"] for item in found["images"]] == ["a.png", "more/b.png"]
    names = {item["id"]: item["name"] for item in found["categories"]}
    rows = [(item["image_id"], names[item["category_id"]]) for item in found["annotations"]]
    assert rows == [(1, "the red thing"), (1, "the blue thing"), (2, "the blue thing")]
    np.testing.assert_array_equal(masks.decode(found["annotations"][0]["segmentation"]), mask_of("red"))


def test_a_wrong_tolerance_is_one_line(tmp_path, checkpoint, capsys):
    photo(tmp_path / "photos" / "a.png", "red")
    words = [str(tmp_path / "photos"), "red", "--checkpoint", checkpoint, "--tolerance", "-1"]
    assert folder_to_coco.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_two_models_are_compared(tmp_path, checkpoint, monkeypatch, capsys):
    one, other = Predictor(ColourSegmenter()), Predictor(ColourSegmenter())
    segment = other.segment
    monkeypatch.setattr(
        other, "segment", lambda texts: segment([text.replace("red", "blue") for text in texts])
    )
    models = iter((one, other))
    monkeypatch.setattr(Predictor, "from_pretrained", lambda path, **_: next(models))
    path = str(photo(tmp_path / "a.png", "red", "blue"))
    words = [
        checkpoint,
        checkpoint,
        "--photos",
        path,
        "--sentences",
        "the red thing",
        "the blue thing",
        "a green one",
    ]
    assert compare_two_models.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("2 of 3 answers agree")
    with (tmp_path / "out" / "agreement.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert [row[1:] for row in rows[1:]] == [
        ["the red thing", "0.0"],
        ["the blue thing", "1.0"],
        ["a green one", "1.0"],
    ]
    [picture] = (tmp_path / "out").glob("*.png")
    with Image.open(picture) as sheet:
        assert picture.name == "photo0001_sentence01.png" and sheet.width > sheet.height


def test_every_fifth_photo_is_measured(tmp_path):
    names = [f"{number:02d}.jpg" for number in range(11)]
    (tmp_path / "a.json").write_text(
        json.dumps({"images": [{"file_name": name} for name in reversed(names)]})
    )
    finetune_own_classes.write_splits(tmp_path / "a.json", tmp_path / "out" / "splits.csv")
    rows = list(csv.reader((tmp_path / "out" / "splits.csv").read_text().splitlines()))
    assert [name for name, split in rows if split == "val"] == ["00.jpg", "05.jpg", "10.jpg"]
    assert len(rows) == 12


# ---- CVAT


def example(folder: str, name: str) -> ModuleType:
    """A module of an example that is no package, as the tools load it."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(f"example_{folder}", EXAMPLES / folder / name)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent:
        monkeypatch.setattr(sys.modules[parent], child, module, raising=False)


@pytest.fixture
def cvat_function(monkeypatch) -> ModuleType:
    """The function's module over a stub of cvat_sdk 2.80."""

    def request(kind: str):
        return lambda label, points: {"type": kind, "label_id": label, "points": points, "frame": 0}

    stub(monkeypatch, "cvat_sdk")
    stub(monkeypatch, "cvat_sdk.models", LabeledShapeRequest=dict)
    stub(
        monkeypatch,
        "cvat_sdk.auto_annotation",
        DetectionFunctionSpec=lambda *, labels: SimpleNamespace(labels=labels),
        DetectionFunctionContext=SimpleNamespace,
        label_spec=lambda name, number: (name, number),
        mask=request("mask"),
        polygon=request("polygon"),
    )
    stub(monkeypatch, "cvat_sdk.masks", encode_mask=lambda mask: mask)
    return example("cvat_function", "function.py")


def asked(threshold: float | None = None, polygons: bool = False) -> SimpleNamespace:
    return SimpleNamespace(frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=polygons)


def test_the_cvat_function_annotates_a_frame(tmp_path, checkpoint, cvat_function):
    table = tmp_path / "sentences.csv"
    table.write_text(
        "thing,the red thing\nthing,the blue one\n\nplant,the green plant\n", encoding="utf-8-sig"
    )
    function = cvat_function.create(checkpoint, str(table))
    assert function.spec.labels == [("thing", 0), ("plant", 1)]
    with Image.open(photo(tmp_path / "a.png", "red", "blue")) as image:
        red, blue = function.detect(asked(), image)
        assert (red["type"], red["label_id"], blue["label_id"]) == ("mask", 0, 0)
        np.testing.assert_array_equal(red["points"], mask_of("red"))
        np.testing.assert_array_equal(blue["points"], mask_of("blue"))
        polygons = function.detect(asked(polygons=True), image)
        assert polygons[0] == {
            "type": "polygon",
            "label_id": 0,
            "points": [5, 4, 25, 4, 25, 20, 5, 20],
            "frame": 0,
        }
        assert function.detect(asked(threshold=0.9), image) == []  # the scores are 0.875


@pytest.mark.parametrize("text", ["", "the red thing\n", "a,b,c\n", "a,\n"])
def test_a_table_that_is_none_is_refused(tmp_path, cvat_function, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match="a line is `label,sentence`"):
        cvat_function.read_questions(tmp_path / "t.csv")


# ---- Label Studio


class LabelStudioStub:
    """What the backend uses of label_studio_ml's LabelStudioMLBase."""

    def __init__(self, labels: list[str], names: tuple[str, str, str] = ("tag", "img", "picture")) -> None:
        self.kept: dict[str, str] = {}
        self.label_interface = SimpleNamespace(
            get_first_tag_occurence=lambda control, item: names,
            get_control=lambda name: SimpleNamespace(labels=labels) if name == names[0] else None,
        )
        self.setup()

    def set(self, key: str, value: str) -> None:
        self.kept[key] = value

    def get_local_path(self, url: str, task_id: int | None = None) -> str:
        return url.removeprefix("/data/local-files/?d=")


@pytest.fixture
def backend(monkeypatch) -> type:
    stub(monkeypatch, "label_studio_ml")
    stub(monkeypatch, "label_studio_ml.model", LabelStudioMLBase=LabelStudioStub)
    return example("label_studio_backend", "model.py").UniresxxBackend


def test_the_label_studio_backend_answers_in_the_projects_tags(tmp_path, checkpoint, backend, monkeypatch):
    monkeypatch.setenv("UNIRESXX_CHECKPOINT", checkpoint)
    path = photo(tmp_path / "a.png", "red", "blue")
    model = backend(["the red thing", "a green thing"])
    assert model.kept["model_version"].startswith(f"{checkpoint}@")
    url = f"/data/local-files/?d={path}"
    first, second = model.predict([{"id": 1, "data": {"picture": url}}, {"id": 2, "data": {"picture": url}}])
    assert (
        first == second and first["score"] == 0.875 and first["model_version"] == model.kept["model_version"]
    )
    [region] = first["result"]
    assert (region["from_name"], region["to_name"], region["type"]) == ("tag", "img", "brushlabels")
    assert region["value"]["brushlabels"] == ["the red thing"]
    assert (region["original_height"], region["original_width"]) == (H, W)
    values = decode_brush(region["value"]["rle"], 4 * H * W).reshape(H, W, 4)
    np.testing.assert_array_equal(values[..., 3] > 0, mask_of("red"))
    assert json.dumps(first)


def test_the_backend_says_which_variable_is_missing(backend, monkeypatch):
    monkeypatch.delenv("UNIRESXX_CHECKPOINT", raising=False)
    with pytest.raises(InputError, match="UNIRESXX_CHECKPOINT is not set"):
        backend(["red"])
