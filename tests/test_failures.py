"""The failure analysis: what a wrong answer shows, seen from what was asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.failures import Asked, confusion, main, tables_of, words_say
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.scenes.graph import Scene
from uniresxx.data.scenes.pairs import PLAIN
from uniresxx.data.scenes.phrasing import Style, template_of
from uniresxx.data.scenes.presets import preset_of
from uniresxx.data.scenes.record import build_scene, scene_record
from uniresxx.data.scenes.solver import Query
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.predictions import JsonlWriter, to_json
from uniresxx.types import Expression, Granularity, ImageRecord

BENCHMARK = "scenes_easy/val"


@pytest.fixture(scope="module")
def pair() -> tuple[ImageRecord, Scene, Expression]:
    """A scene with two things of a kind, one of which is asked for."""
    for number in range(200):
        record = scene_record("scenes_easy", "val", number)
        scene = build_scene(preset_of("scenes_easy"), "val", number, 0)
        for expression in record.expressions:
            same = [thing for thing in scene.things if thing.kind == expression.source["kind"]]
            if expression.granularity is Granularity.OBJECT and len(same) == 2 and all(t.parts for t in same):
                return record, scene, expression
    raise AssertionError("no such scene")


def answer(mask: np.ndarray | None) -> Prediction:
    return Prediction(mask is None, None if mask is None else masks.encode(mask), "")


def test_a_wrong_answer_is_named_by_what_it_shows(pair: tuple[ImageRecord, Scene, Expression]) -> None:
    record, scene, expression = pair
    assert expression.rle is not None
    truth = masks.decode(expression.rle)
    same = [thing for thing in scene.things if thing.kind == expression.source["kind"]]
    [own] = [thing for thing in same if (scene.mask(thing.paints) & truth).any()]
    [twin] = [thing for thing in same if thing is not own]
    [other, *_] = [thing for thing in scene.things if thing not in same]
    part = next(iter(own.parts.values()))
    shown = {
        "object -> another of its kind": scene.mask(twin.paints),
        "object -> all of its kind": scene.mask([*own.paints, *twin.paints]),
        "object -> a thing of another kind": scene.mask(other.paints),
        "object -> another part of it": scene.mask([instance.paint for instance in part]),
        "object -> rejected": None,
        "object -> no one thing": np.eye(len(truth), dtype=bool),
    }
    for name, mask in shown.items():
        assert confusion(Asked(record, expression, answer(mask)), scene) == name
    nothing = replace(
        expression, rle=None, granularity=Granularity.NONE, source=expression.source | {"slot": "kind"}
    )
    asked = Asked(record, nothing, answer(scene.mask(twin.paints)))
    assert confusion(asked, scene) == "nothing (kind changed) -> another of its kind" and not asked.is_right


def test_an_answer_without_a_pixel_is_a_rejection(pair: tuple[ImageRecord, Scene, Expression]) -> None:
    record, scene, expression = pair
    empty = Asked(record, expression, answer(np.zeros((record.height, record.width), bool)))
    assert empty.mask is None and not empty.is_right and confusion(empty, scene) == "object -> rejected"
    right = Asked(record, expression, replace(answer(None), rejected=False, rle=expression.rle))
    assert right.is_right
    tables = tables_of([empty, right, right])
    assert tables["granularity and level"] == {f"object, level {expression.level}": (2, 3, 66.67)}


def test_what_the_words_say_is_read_from_the_template() -> None:
    """Each query of a kind of its own, in plain words and in three styles of the full preset."""
    car, dog = Query("car"), Query("dog")
    said = {
        "the kind alone": car,
        "a colour": replace(car, colours=("red",)),
        "left or right": replace(car, colours=("red",), order="left"),
        "big": replace(car, order="large"),
        "small": replace(car, order="small", part="wheel"),
        "top or bottom": replace(car, order="top"),
        "a rank": replace(car, order="left", rank=1),
        "a relation": replace(car, relation="left of", anchor=dog),
        "what it is not": replace(car, without="red", number=0),
        "left or right of the part": replace(car, part="wheel", side="left"),
    }
    for expected, query in said.items():
        for style in (PLAIN, Style(), Style(frame=3, form=7), Style(telegraphic=True)):
            assert words_say(template_of(query, style)) == expected


def test_the_command_writes_tables_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run" / BENCHMARK / "predictions.jsonl"
    with JsonlWriter(out) as lines:
        for record in load_benchmark(BENCHMARK, 20):
            for expression in record.expressions:
                lines.write(to_json(expression.expression_id, answer(None)))
    assert main([str(tmp_path / "run"), BENCHMARK, "--out", str(tmp_path / "found")]) == 0
    found = json.loads((tmp_path / "found" / "failures.json").read_text())
    assert set(found["confusions"]) == {"part -> rejected", "object -> rejected", "several -> rejected"}
    absent = {
        row: numbers[:2] for row, numbers in found["right"]["granularity and level"].items() if "none" in row
    }
    assert all(right == count for right, count in absent.values())
    assert Image.open(tmp_path / "found" / "confusions.png").width > 600
    assert "wrong answers show" in capsys.readouterr().out
