"""Captions, instructions and region captions: native files, store, guard, mixture and batches of plain answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mllm.chat import IGNORE
from mllm.tokens import Vocabulary
from tests.test_mixture import CONFIG, pool, record
from uniresxx.cli import main as program
from uniresxx.data.catalog import known_benchmarks, load_benchmark, splits_of
from uniresxx.data.guard import record_coco_id
from uniresxx.data.mixture.augment import mirrored
from uniresxx.data.mixture.batches import Batches
from uniresxx.data.mixture.counts import count_asked, texts_of
from uniresxx.data.mixture.data_log import ASKED, DataLog
from uniresxx.data.mixture.mix import Mixture, OpenedPart
from uniresxx.data.mixture.open import open_mixture
from uniresxx.data.mixture.parts import MIXTURES, MixturePart
from uniresxx.data.readers.region_captions import on_grid
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.model.collate import PackedCollator
from uniresxx.types import Dialogue, Granularity, ImageRecord, Turn

COCO = "coco/train2017/000000033471.jpg"


def photo(path: Path, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, dtype=np.uint8)).save(path)


def turns(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(said)]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """All four sets as they are released, with the RefCOCO list that holds one of their photos out."""
    data = tmp_path / "data"
    write(data / "llava_pretrain/blip_laion_cc_sbu_558k.json", [
        {"id": "004539375", "image": "00453/004539375.jpg",
         "conversations": turns("Render a clear summary of the photo.\n<image>", "select luxury furniture")},
        {"id": "2", "image": "00000/2.jpg", "conversations": turns("<image>\nWhat is this?", "a photo that is gone")},
    ])  # fmt: skip
    photo(data / "llava_pretrain/images/00453/004539375.jpg")
    write(data / "llava_instruct/llava_v1_5_mix665k.json", [
        {"id": "000000033471", "image": COCO, "conversations": turns(
            "<image>\nWhat colour is the bus?", "The bus is white and red.", "And the sky?", "It is grey.")},
        {"id": "000000033471", "image": COCO, "conversations": turns("Where is it?\n<image>", "On a street.")},
        {"id": "vg", "image": "vg/VG_100K/7.jpg", "conversations": turns("<image>\nWhat is it?", "A dog.")},
        {"id": "wgByO4Y_0", "model": "", "conversations": turns("Hello", "Hello.")},
        {"id": "odd", "image": COCO, "conversations": turns("<image>\nWhat?")},
    ])  # fmt: skip
    photo(data / COCO)
    photo(data / "vg/VG_100K/7.jpg", 60, 50)
    write(data / "visual_genome/image_data.json", [
        {"image_id": 7, "width": 60, "height": 50, "coco_id": 4711, "flickr_id": None, "url": "x"},
        {"image_id": 8, "width": 40, "height": 30, "coco_id": None, "flickr_id": None, "url": "y"},
    ])  # fmt: skip
    region = {
        "region_id": 11,
        "image_id": 7,
        "x": 0,
        "y": 0,
        "width": 60,
        "height": 50,
        "phrase": "a dog on grass ",
    }
    write(data / "visual_genome/region_descriptions.json", [
        {"id": 7, "regions": [region]},
        {"id": 8, "regions": [
            region | {"region_id": 12, "image_id": 8, "x": 30, "y": -2, "width": 20, "height": 17, "phrase": "wheel"},
            region | {"region_id": 13, "image_id": 8, "x": 40, "width": 5, "phrase": "outside of the photo"},
        ]},
    ])  # fmt: skip
    photo(data / "visual_genome/VG_100K_2/8.jpg")
    photo(data / "visual_genome/VG_100K/7.jpg", 60, 50)
    lines = [
        {"image": "a/1.jpg", "width": 40, "height": 30, "regions": [
            {"xywh": [10, 15, 20, 15], "caption": "a red cup", "id": "cup"},
            {"xyxy": [0, 0, 4, 30], "caption": "pole"}]},
        {"image": "2.jpg", "width": 40, "height": 30, "coco_id": 4711,
         "regions": [{"xyxy": [0, 0, 40, 30], "caption": "all of it"}]},
    ]  # fmt: skip
    (data / "region_captions").mkdir()
    (data / "region_captions/train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    photo(data / "region_captions/images/a/1.jpg")
    photo(data / "region_captions/images/2.jpg")
    refs = [{"ref_id": 1, "ann_id": 1, "image_id": 4711, "split": "val", "sentences": []}]
    write(data / "refcoco/refs(unc).json", refs)
    return data


def said(records: list[ImageRecord]) -> list[tuple[str, list[tuple[str, str | None]]]]:
    return [
        (dialogue.dialogue_id, [(turn.question, turn.answer) for turn in dialogue.turns])
        for item in records
        for dialogue in item.dialogues
    ]


# ---- readers


def test_captions_of_photos_are_read_without_the_placeholder(root: Path) -> None:
    records = list(load_benchmark("llava_pretrain/train", root))
    answer = ("Render a clear summary of the photo.", "select luxury furniture")
    assert said(records) == [("llava_pretrain/train/004539375", [answer])]
    only = records[0]
    assert only.path == str(root / "llava_pretrain/images/00453/004539375.jpg")
    assert (only.height, only.width, only.expressions, only.boxes) == (30, 40, (), {})
    assert [line for line in only.source["left_out"] if "00000/2.jpg is missing" in line]


def test_rows_of_one_photo_are_one_record_and_rows_without_are_left_out(root: Path) -> None:
    records = list(load_benchmark("llava_instruct/train", root))
    bus = [("What colour is the bus?", "The bus is white and red."), ("And the sky?", "It is grey.")]
    assert said(records) == [
        ("llava_instruct/train/000000033471", bus),
        ("llava_instruct/train/000000033471#2", [("Where is it?", "On a street.")]),
        ("llava_instruct/train/vg", [("What is it?", "A dog.")]),
    ]
    reasons = [line.partition(": ")[2] for line in records[0].source["left_out"]]
    assert reasons == [
        "record 3: has no image",
        "record 4: its turns are blank or do not alternate between human and gpt",
    ]
    assert [record_coco_id(item) for item in records] == [
        33471,
        4711,
    ]  # the second is in COCO, says Visual Genome


@pytest.mark.parametrize("name", ["llava_pretrain", "llava_instruct"])
def test_a_wrong_row_is_named(root: Path, name: str) -> None:
    path = next((root / name).glob("*.json"))
    for wrong, line in (
        ({"conversations": "hello"}, "conversations must be a list"),
        ({"conversations": [{"from": "human", "value": 3}]}, "value must be text, not 3"),
        ({"image": "../x.jpg"}, "must be a file under the photo folder"),
        ({"image": 5}, "image must be a file name"),
    ):
        row = {"id": "1", "image": COCO, "conversations": turns("<image>\nWhat?", "That.")}
        write(path, [row | wrong])
        with pytest.raises(InputError, match=rf"{path.name}: record 0: .*{line}"):
            load_benchmark(f"{name}/train", root)


def test_regions_are_asked_with_corners_on_the_grid(root: Path) -> None:
    records = list(load_benchmark("region_captions/train", root))
    assert said(records) == [
        ("region_captions/train/cup", [("The caption of this region (250,500),(749,999) is?", "a red cup")]),
        ("region_captions/train/0_1", [("Describe the region (0,0),(100,999).", "pole")]),
        ("region_captions/train/1_0", [("The caption of this region (0,0),(999,999) is?", "all of it")]),
    ]
    assert records[0].boxes["region"].tolist() == [[10, 15, 30, 30], [0, 0, 4, 30]]
    assert [record_coco_id(item) for item in records] == [None, 4711]
    assert splits_of("region_captions", root) == ["train"]


def test_visual_genome_is_read_as_released(root: Path) -> None:
    records = list(load_benchmark("visual_genome/train", root))
    assert [turn for _, turn in said(records)] == [
        [("The caption of this region (0,0),(999,999) is?", "a dog on grass")],
        [("The caption of this region (749,0),(999,500) is?", "wheel")],  # cut to the photo
    ]
    assert [Path(str(item.path)).name for item in records] == ["7.jpg", "8.jpg"]
    assert [record_coco_id(item) for item in records] == [4711, None]
    assert "region 13: has no caption, or no pixel" in records[0].source["left_out"][0]


@pytest.mark.parametrize(
    ("region", "line"),
    [
        ({"xyxy": [0, 0, 4, 4], "xywh": [0, 0, 4, 4], "caption": "a"}, "one of xyxy and xywh"),
        ({"caption": "a"}, "one of xyxy and xywh"),
        ({"xyxy": [0, 0, 4], "caption": "a"}, "four numbers"),
        ({"xyxy": [0, 0, 4, "4"], "caption": "a"}, "four numbers"),
        ({"xyxy": [0, 0, 4, 4]}, "no field 'caption'"),
        ("a", "regions must be a list of objects"),
        ({"xyxy": [0, 0, 4, 4], "caption": 5}, "caption must be text, not 5"),
    ],
)
def test_a_wrong_region_is_named(root: Path, region: object, line: str) -> None:
    row = {"image": "2.jpg", "width": 40, "height": 30, "regions": [region]}
    (root / "region_captions/train.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=rf"train\.jsonl: line 1.*{line}"):
        load_benchmark("region_captions/train", root)


def test_two_records_of_a_photo_and_a_broken_line_are_refused(root: Path) -> None:
    path = root / "region_captions/train.jsonl"
    row = {"image": "2.jpg", "width": 40, "height": 30, "regions": [{"xyxy": [0, 0, 9, 9], "caption": "a"}]}
    path.write_text("\n".join([json.dumps(row)] * 2))
    with pytest.raises(InputError, match=r"2\.jpg is in two records"):
        load_benchmark("region_captions/train", root)
    path.write_text(json.dumps(row) + "\n{")
    with pytest.raises(InputError, match=r"train\.jsonl: line 2: is no readable JSON"):
        load_benchmark("region_captions/train", root)


@given(st.integers(1, 4000), st.integers(1, 4000), st.data())
def test_the_grid_gives_the_box_back_within_half_a_step(width: int, height: int, data: st.DataObject) -> None:
    x0, x1 = sorted(data.draw(st.tuples(*[st.floats(0, width)] * 2)))
    y0, y1 = sorted(data.draw(st.tuples(*[st.floats(0, height)] * 2)))
    text = on_grid((x0, y0, x1, y1), (height, width))
    numbers = [int(item) for item in text.replace("(", "").replace(")", "").split(",")]
    assert all(0 <= number <= 999 for number in numbers)
    found = [number / 999 * side for number, side in zip(numbers, (width, height) * 2, strict=True)]
    for value, side, back in zip((x0, y0, x1, y1), (width, height) * 2, found, strict=True):
        assert abs(value - back) <= side / 999 / 2 + 1e-6


def test_a_picture_whose_regions_are_named_by_corners_is_never_mirrored(root: Path) -> None:
    assert all(mirrored(item) is None for item in load_benchmark("region_captions/train", root))


# ---- store and guard


@pytest.mark.parametrize("name", ["llava_pretrain", "llava_instruct", "visual_genome", "region_captions"])
def test_a_store_holds_what_the_reader_gives_and_the_guard_removes_held_out_photos(
    root: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stores" / name
    assert program(["data", "prepare", name, "--data", str(root), "--out", str(out)]) == 0
    records = [item for item in load_benchmark(f"{name}/train", root) if record_coco_id(item) != 4711]
    store = Store.open(out)
    assert said(list(store)) == said(records)
    assert store.meta["splits"]["train"]["counts"]["dialogues"] == len(said(records))
    for native, kept in zip(records, store, strict=True):
        boxes = [{kind: found.tolist() for kind, found in item.boxes.items()} for item in (native, kept)]
        assert boxes[0] == boxes[1] and record_coco_id(native) == record_coco_id(kept)
    assert np.array_equal(count_asked(store.records("train")), count_asked(records))
    assert texts_of(store.records("train"), 100) == texts_of(records, 100)
    assert program(["data", "verify", str(out)]) == 0
    assert program(["data", "inspect", str(out), "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert program(["data", "inspect", name, "--data", str(root)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(said(records))} dialogues" in printed


# ---- mixtures


def described(name: str, count: int) -> ImageRecord:
    """A picture without expressions, and `count` captions of it."""
    asked = tuple(
        Dialogue(f"{name}/{i}", (Turn(f"What is at {i}?", answer=f"a thing {i}"),)) for i in range(count)
    )
    return record(name, "", dialogues=asked)


def captions(label: str, sizes: list[int], weight: float = 1.0, shown: int = 4) -> OpenedPart:
    return OpenedPart(label, [described(f"{label}{i}", size) for i, size in enumerate(sizes)], shown, weight)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["Segment the thing. What is at 1?"] * 9, 300)


def test_captions_count_as_expressions_do(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Weights 3 to 1: three quarters of what is asked are captions, however many a picture has."""
    mixture = Mixture((captions("text", [1, 9, 0, 2], 3.0), pool("seg", 5, "oomn", 1.0)), 0)
    assert mixture.parts[0].rows.tolist() == [0, 1, 3]
    batches = Batches(mixture, PackedCollator(CONFIG, vocabulary), 0, 8, 1, 4)
    found = [batches(step, 0) for step in range(40)]
    drawn: dict[str, int] = {}
    for batch in found:
        for key, count in batch.drawn.items():
            drawn[key] = drawn.get(key, 0) + count
    texts, expressions = (
        drawn["text texts"],
        sum(drawn[f"seg {kind}"] for kind in ("object", "multi", "none")),
    )
    assert texts / (texts + expressions) == pytest.approx(0.75, abs=0.03)
    assert drawn["text texts"] == drawn["text dialogues"] and drawn["seg texts"] == 0
    log = DataLog(mixture.shares, 8, 0.001)
    lines = log.report(tmp_path, [batch.drawn for batch in found])
    assert f"{texts} texts" in lines[0] and "(wanted 75.0 %)" in lines[0]
    about = json.loads((tmp_path / "data.json").read_text())["drawn"]["text"]
    assert (
        about["share"] == pytest.approx(0.75, abs=0.03)
        and about["texts"] == texts
        and about["expressions"] == 0
    )


def test_a_picture_shows_as_many_captions_as_expressions_are_shown_at_most(vocabulary: Vocabulary) -> None:
    batch = Batches(Mixture((captions("text", [9]),), 0), PackedCollator(CONFIG, vocabulary), 0, 2, 1, 3)(
        0, 0
    )
    assert batch.branch_BT.amax(dim=1).tolist() == [2, 2]
    assert batch.expression_ids == [] and len(batch.seg_position_E) == 0 and batch.masks_EHW.shape[0] == 0
    row = batch.labels_BT[0]
    answered = vocabulary.decode([int(token) for token in row[row != IGNORE]])
    assert answered.count("a thing") == 3


def test_a_part_of_one_granularity_shows_no_captions() -> None:
    mixed = [described("a", 3), record("b", "o")]
    rows = [OpenedPart("x", mixed, 4, 1.0, only).rows.tolist() for only in ((), (Granularity.OBJECT,))]
    assert rows == [[0, 1], [1]]
    counts = count_asked([described("a", 3), record("b", "oon", dialogues=described("c", 2).dialogues)])
    assert [dict(zip(ASKED, row, strict=True))["texts"] for row in counts.tolist()] == [3, 0]


def test_regions_are_no_truth_of_the_box_head(root: Path) -> None:
    """Which of a photo's things are objects, and whether all are boxed, is not known."""
    part = OpenedPart("r", load_benchmark("region_captions/train", root), 4)
    assert part.box_levels == set()


def test_the_captions_mixture_opens_from_native_files_and_from_stores(root: Path, tmp_path: Path) -> None:
    native = open_mixture(MIXTURES["captions"], 8, 0, root)
    for name in ("llava_pretrain", "visual_genome"):
        out = str(root / "stores" / name)
        assert program(["data", "prepare", name, "--data", str(root), "--out", out]) == 0
    stored = open_mixture(MIXTURES["captions"], 8, 0, root)
    assert native.shares == stored.shares == {"llava_pretrain/train": 0.5, "visual_genome/train": 0.5}
    assert said([native(slot) for slot in range(6)]) == said([stored(slot) for slot in range(6)])
    assert [part.about["guard"]["mode"] for part in stored.parts] == ["on", "on"]


def test_every_part_of_every_mixture_is_a_known_data_set() -> None:
    for parts in MIXTURES.values():
        assert {f"{part.source}/{part.split}" for part in parts} <= set(known_benchmarks())
    with pytest.raises(InputError, match="scenes are drawn without end"):
        open_mixture((MixturePart("scenes"),), 4, 0)
