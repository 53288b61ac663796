"""The model and the scenes that come with the package."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tools.ship_checkpoint import MOST_BYTES, measure
from uniresxx.checkpoints import resolve as resolving
from uniresxx.checkpoints.publish import sha256_of
from uniresxx.checkpoints.resolve import ABOUT, SHIPPED, model_name, resolve
from uniresxx.checkpoints.tensors import WEIGHTS, read_json, read_tensors
from uniresxx.cli import main
from uniresxx.errors import InputError
from uniresxx.hub.card import saw_only_scenes
from uniresxx.imaging.decode import read_photo
from uniresxx.predictor import Predictor
from uniresxx.segmenters.load import load_segmenter

SCENES = Path(__file__).parents[1] / "assets" / "scenes"
ROUNDING = 1.0  # percent: another machine's rounding may turn a few of the 900 answers


def test_the_shipped_model_is_small_and_says_what_made_it():
    about = read_json(SHIPPED / ABOUT)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= MOST_BYTES
    assert about["weights_sha256"] == sha256_of(SHIPPED / WEIGHTS)
    assert about["recipe"] and about["commit"] and about["step"] > 0
    assert {str(tensor.dtype) for tensor in read_tensors(SHIPPED / WEIGHTS).values()} == {"torch.bfloat16"}
    texts = [(SHIPPED / name).read_text() for name in (ABOUT, "recipe.json", "config.json")]
    assert not any(str(Path.home()) in text or "/tmp" in text for text in texts)


def test_the_shipped_model_repeats_its_scores():
    about = read_json(SHIPPED / ABOUT)
    found = measure(load_segmenter(device="cpu"))
    assert found["expressions"] == about["expressions"] and found["pictures"] == 100
    for part in ("overall", *(f"by_granularity.{name}" for name in about["scores"]["by_granularity"])):
        ours, theirs = _part(found["scores"], part), _part(about["scores"], part)
        for key, value in theirs.items():
            assert value is None or ours[key] == pytest.approx(value, abs=ROUNDING * _scale(part)), (
                part,
                key,
            )


def _part(scores, name):
    for key in name.split("."):
        scores = scores[key]
    return scores


def _scale(part):
    """A quarter of the expressions moves four times as far with one answer."""
    return 1 if part == "overall" else 4


def test_without_a_name_the_shipped_model_answers():
    predictor = Predictor.from_pretrained()
    assert resolve(None, print) == SHIPPED and "comes with uniresxx" in predictor.name
    predictor.set_image(SCENES / "01.png")
    house, spelt_otherwise, absent = predictor.segment(
        ["the red house", "the\nred\thouse", "the green house"]
    )
    listed = json.loads((SCENES / "sentences.json").read_text())["pictures"][0]["expressions"]
    truth = next(item for item in listed if item["text"] == "the red house")
    assert house.rle == spelt_otherwise.rle and absent.rejected
    assert 0.7 * truth["area"] < house.mask.sum() < 1.4 * truth["area"]
    assert predictor.chat("Where is the red house?").segments[0].mask.any()


def test_it_was_trained_on_drawn_scenes_only(tmp_path):
    assert saw_only_scenes(SHIPPED)
    recipe = read_json(SHIPPED / "recipe.json")
    (tmp_path / "config.json").write_bytes((SHIPPED / "config.json").read_bytes())
    assert not saw_only_scenes(tmp_path)  # no recipe: not known
    own = {"data": "stores/own/train", "share": 0.5, "guard": {"mode": "checked"}}
    recipe["training_data"].append(own)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    assert not saw_only_scenes(tmp_path)


def test_an_installation_without_a_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(resolving, "SHIPPED", tmp_path)
    with pytest.raises(InputError, match="no model of its own"):
        resolve(None, print)
    assert model_name("runs/demo") == "runs/demo"


# ---- sample scenes


def test_the_sample_scenes_are_drawn_again(tmp_path, capsys):
    command = ["data", "export-scenes", "scenes_easy/test", "--first", "33", "--out", str(tmp_path)]
    assert main(command) == 0 and "4 pictures" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["01.png", "02.png", "03.png", "04.png", "sentences.json"]
    for name in ("01.png", "02.png", "03.png", "04.png"):
        assert (read_photo(tmp_path / name) == read_photo(SCENES / name)).all()
    ours, theirs = (json.loads((folder / "sentences.json").read_text()) for folder in (tmp_path, SCENES))
    assert ours == theirs
    for picture in ours["pictures"]:
        for item in picture["expressions"]:
            assert (item["mask"] is None) == (item["granularity"] == "none") == (item["area"] == 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["scenes_easy"], "no split ''"),
        (["refcoco/val"], "unknown scenes preset"),
        (["scenes_easy/test", "--count", "0"], "--count"),
        (["scenes_easy/test", "--first", "-1"], "--first"),
    ],
)
def test_wrong_exports_are_one_line(options, says, tmp_path, capsys):
    assert main(["data", "export-scenes", *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_an_export_does_not_replace_a_file_by_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["data", "export-scenes", "scenes/val", "--out", str(tmp_path / "file")]) == 2
    assert "file is in the way" in capsys.readouterr().err
