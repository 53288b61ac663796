"""Three real photographs that the repository ships, from the reader to the scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from mllm.tokens import Vocabulary
from tests.test_model import CONFIG
from uniresxx.cli import main as command
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.store.photos import photo_of
from uniresxx.data.store.read import Store
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.evaluation.run import evaluate
from uniresxx.imaging import masks
from uniresxx.imaging.marking import Lines, drawn_size, grown, scaled_mask
from uniresxx.imaging.overlay import Layer, draw_overlay
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.prediction import Prediction
from uniresxx.predictor import Predictor
from uniresxx.types import EVALUATION_TEMPLATE, Decoding, Granularity

ROOT = Path(__file__).resolve().parent / "data" / "photos"
# expression -> pixels of its mask, as pycocotools counted them when the polygons were drawn
AREAS = {
    "grefcoco/train/10": 1226,
    "grefcoco/train/11": 1226,
    "grefcoco/train/12": 1757,
    "grefcoco/train/13": 12710,
    "grefcoco/train/14": 3472,
    "grefcoco/train/15": 0,
    "refcocom/train_part_only/900003_0": 247,
    "grefcoco/val/0": 14381,
    "grefcoco/val/1": 14381,
    "grefcoco/val/2": 1924,
    "grefcoco/val/3": 15840,
    "grefcoco/val/4": 16305,
    "grefcoco/val/5": 0,
    "refcocom/val_part_only/900001_0": 908,
    "grefcoco/val/6": 53318,
    "grefcoco/val/7": 1633,
    "grefcoco/val/8": 2552,
    "grefcoco/val/9": 0,
    "refcocom/val_part_only/900002_0": 549,
}


def records_of(split: str):
    return load_benchmark(f"mini_real/{split}", ROOT)


def pairs():
    return [(r, e) for split in ("train", "val") for r in records_of(split) for e in r.expressions]


def test_areas_are_the_recorded_ones():
    assert {e.expression_id: e.area for _, e in pairs()} == AREAS
    assert {e.granularity for _, e in pairs()} == set(Granularity)
    assert all((e.rle is None) == (e.granularity is Granularity.NONE) for _, e in pairs())


def test_masks_are_those_pycocotools_draws_from_the_polygons():
    instances = json.loads((ROOT / "grefcoco" / "instances.json").read_text())
    polygons = {row["id"]: row["segmentation"] for row in instances["annotations"]}
    parts = {
        str(row["segment_id"]): row["segmentation"]
        for row in json.loads((ROOT / "refcocom" / "parts.json").read_text())
    }
    for record, expression in pairs():
        if expression.rle is None:
            continue
        source = expression.source
        if "segment_id" in source:
            pieces = parts[str(source["segment_id"])]
        else:
            pieces = [piece for ann_id in source["ann_id"] for piece in polygons[ann_id]]
        expected = coco.decode(coco.merge(coco.frPyObjects(pieces, record.height, record.width)))
        assert np.array_equal(masks.decode(expression.rle), expected)


def test_a_part_lies_on_its_object():
    owners = {
        row["segment_id"]: row["obj_ann_id"]
        for row in json.loads((ROOT / "refcocom" / "parts.json").read_text())
    }
    whole = {tuple(e.source["ann_id"]): e.rle for _, e in pairs() if "ann_id" in e.source}
    for _, part in pairs():
        if part.granularity is Granularity.PART:
            own = masks.decode(part.rle)
            inside = own & masks.decode(whole[(owners[int(part.source["segment_id"])],)])
            assert inside.sum() > 0.95 * own.sum()


def test_a_store_of_the_photos_holds_what_the_readers_give(tmp_path, capsys):
    words = ["data", "prepare", "mini_real", "--root", str(ROOT), "--out", str(tmp_path / "store")]
    assert command([*words, "--pack-images"]) == 0
    assert command(["data", "verify", str(tmp_path / "store")]) == 0
    assert "nothing wrong" in capsys.readouterr().out
    store = Store.open(tmp_path / "store")
    for split in ("train", "val"):
        for found, read in zip(store.records(split), records_of(split), strict=True):
            assert found.expressions == read.expressions
            assert np.array_equal(photo_of(found), photo_of(read))


def test_dump_prints_every_expression(capsys):
    assert command(["data", "dump", "grefcoco/val", "--data", str(ROOT)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = {line["expression_id"]: line["area"] for line in lines}
    assert shown == {name: area for name, area in AREAS.items() if name.startswith("grefcoco/val")}


def test_an_overlay_keeps_the_colours_of_the_mask_and_darkens_the_rest():
    record = next(r for r in records_of("val") if r.image_id == "1")
    cup = next(e for e in record.expressions if e.text == "the cup")
    photo, mask = photo_of(record), masks.decode(cup.rle)
    size = drawn_size(record.height, record.width)
    pad = Lines.at(size).reach
    drawn, before = (
        np.asarray(draw_overlay(photo, layers))[pad : pad + size[0], pad : pad + size[1]].astype(int)
        for layers in ([Layer(cup.text, mask)], [])
    )
    inside = scaled_mask(mask, size)
    assert np.array_equal(drawn[inside], before[inside])
    far = ~grown(inside, pad)
    assert drawn[far].mean() < 0.6 * before[far].mean()


class RememberedTruth:
    """Answers what it was taught for a photo's size and text; else it rejects."""

    decision_rule = "token"
    question_template = EVALUATION_TEMPLATE

    def __init__(self, records):
        self.truth = {(r.height, r.width, e.text): e.rle for r in records for e in r.expressions}

    def encode_images(self, photos):
        return [photo.shape[:2] for photo in photos]

    def answer(self, encoded, texts, decoding, on_text=None):
        found = [
            self.truth[(*size, text)] for size, asked in zip(encoded, texts, strict=True) for text in asked
        ]
        return [Prediction(rle is None, rle, "[REJ]." if rle is None else "[SEG].") for rle in found]


def test_the_truth_scores_one_hundred_and_no_answer_scores_zero(tmp_path):
    records = records_of("val")
    path = evaluate(RememberedTruth(records), records, "mini_real/val", Decoding(), tmp_path / "right")
    overall = score_file(path, records, "mini_real/val")["overall"]
    for key in ("gIoU", "cIoU", "mIoU", "Pr@0.9", "N-acc", "T-acc"):
        assert overall[key] == 100.0, key
    silent = RememberedTruth(records)
    silent.truth = dict.fromkeys(silent.truth)
    path = evaluate(silent, records, "mini_real/val", Decoding(), tmp_path / "silent")
    overall = score_file(path, records, "mini_real/val")["overall"]
    assert (overall["cIoU"], overall["T-acc"], overall["N-acc"]) == (0.0, 0.0, 100.0)


def test_a_photo_that_its_exif_turns_gives_the_same_pixels(tmp_path):
    upright = photo_of(records_of("train")[0])
    turned = Image.fromarray(np.rot90(upright, 1).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    predictor = Predictor(RememberedTruth(records_of("train")))
    assert np.array_equal(predictor.set_image(tmp_path / "turned.png"), upright)
    found = predictor.segment("the rocket")[0]
    assert found.mask.shape == upright.shape[:2]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_predictor_answers_at_the_size_of_the_photo(split):
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red cup of coffee"] * 3, 340)
    torch.manual_seed(0)
    predictor = Predictor(UniRESPlusPlusModel(CONFIG, vocabulary).eval(), Decoding(max_new_tokens=4))
    for record in records_of(split):
        predictor.set_image(record.path)
        texts = [e.text for e in record.expressions]
        answers = predictor.segment(texts)
        drawn = [answer.rle or answer.mask_if_forced for answer in answers]  # a random model may reject
        assert [mask["size"] for mask in drawn] == [[record.height, record.width]] * len(texts)
