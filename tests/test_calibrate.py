"""Refusal after finetuning: how it is measured, and the presence head retrained alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mllm.tokens import Vocabulary
from tests.test_heads import SAM, SAM2
from tests.test_model import CONFIG, batch_of, picture
from train import calibrate, refusal
from train.__main__ import main
from train.command_line import parse_calibrate, parse_finetune
from train.recipe import DataConfig
from train.refusal import Measured, compared, is_lost, refusal_pictures, tells, training_data
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.checkpoints.resolve import SHIPPED
from uniresxx.checkpoints.tensors import WEIGHTS, read_json, read_tensors, write_tensors
from uniresxx.cli.data import prepare
from uniresxx.errors import InputError
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.heads.base import PresenceLayers
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.presence import FEWEST, Seen, fit, layers_of, look
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.segmenters.film_unet.config import FilmUNetConfig
from uniresxx.segmenters.film_unet.modeling import FilmUNet

VOCABULARY = Vocabulary.train([*TRAINING_TEMPLATES, "the red square"], CONFIG.mllm.token_count)
HEADS = {
    "pyramid": CONFIG,
    "sam": replace(CONFIG, mask_head="sam", sam=SAM, dense_classes=(0, 0, 0)),
    "sam2": replace(CONFIG, mask_head="sam2", sam2=SAM2, dense_classes=(0, 0, 0)),
}


def model_of(config: UniRESPlusPlusConfig) -> UniRESPlusPlusModel:
    torch.manual_seed(3)
    return UniRESPlusPlusModel(config, VOCABULARY).eval()


# ---------------------------------------------------------------------------------------- the presence layers


@pytest.mark.parametrize("kind", HEADS)
def test_the_presence_layers_compute_the_presence_logit_of_what_they_read(kind):
    model = model_of(HEADS[kind])
    batches = [
        batch_of(records, VOCABULARY, HEADS[kind]) for records in ([picture(0), picture(1)], [picture(2)])
    ]
    layers, row = layers_of(model)
    seen = look(model, batches)
    with torch.no_grad():
        computed_N = layers(seen.inputs_NC)[:, row]
        outputs = [model(batch).head.presence_E for batch in batches]
    torch.testing.assert_close(computed_N, torch.cat(outputs), rtol=1e-4, atol=1e-5)
    assert seen.present_N.tolist() == torch.cat([batch.present_E for batch in batches]).tolist()


@pytest.mark.parametrize("kind", HEADS)
def test_fitting_changes_the_presence_and_no_mask_or_quality(kind):
    model = model_of(HEADS[kind])
    batch = batch_of([picture(0), picture(1)], VOCABULARY, HEADS[kind])
    width = look(model, [batch]).inputs_NC.shape[1]
    generator = torch.Generator().manual_seed(0)
    inputs_NC = torch.randn(400, width, generator=generator)
    direction_C = torch.randn(width, generator=generator)
    present_N = (inputs_NC @ direction_C) > 0
    seen = Seen(inputs_NC, present_N, torch.arange(400) % 5 == 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        old = model(batch).head
    found = fit(layers_of(model), seen)
    with torch.no_grad():
        new = model(batch).head
    assert found.after < 0.7 * found.before
    assert torch.equal(old.masks_Ehw, new.masks_Ehw) and torch.equal(old.quality_E, new.quality_E)
    assert not torch.equal(old.presence_E, new.presence_E)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    own = {
        f"head.{name}"
        for name, p in model.head.named_parameters()
        if any(p is q for q in layers_of(model).layers.parameters())
    }
    assert changed and changed <= own


def test_a_fit_is_that_of_logistic_regression_with_equal_classes():
    """One input, known answer: with classes of equal weight the logit at the point between two equal groups is 0."""
    layer = nn.Linear(1, 2)
    quality = layer.weight[0].detach().clone(), layer.bias[0].detach().clone()
    values = torch.cat((torch.randn(18_000, generator=torch.Generator().manual_seed(0)) + 1,
                        torch.randn(2_000, generator=torch.Generator().manual_seed(1)) - 1))  # fmt: skip
    present_N = torch.arange(20_000) < 18_000
    fit(PresenceLayers(layer, 1), Seen(values[:, None], present_N, torch.arange(20_000) % 2 == 0))
    weight, bias = layer.weight[1].item(), layer.bias[1].item()
    # two normal distributions at +1 and -1 of deviation 1: the log odds are 2 x, and 0 between them
    assert weight == pytest.approx(2, abs=0.15) and bias == pytest.approx(0, abs=0.15)
    assert torch.equal(layer.weight[0], quality[0]) and torch.equal(layer.bias[0], quality[1])


def test_too_few_of_a_kind_are_refused_and_nothing_changes():
    layer = nn.Linear(4, 2)
    before = layer.weight.detach().clone()
    present_N = torch.ones(200, dtype=torch.bool)
    present_N[: FEWEST - 1] = False
    seen = Seen(torch.randn(200, 4), present_N, torch.arange(200) % 5 == 4)
    with pytest.raises(InputError, match="something absent"):
        fit(PresenceLayers(layer, 1), seen)
    assert torch.equal(layer.weight, before)


def test_models_without_a_presence_head_of_their_own_are_refused():
    with pytest.raises(InputError, match="instance queries"):
        layers_of(model_of(replace(CONFIG, instances=2)))
    with pytest.raises(InputError, match="without a loss"):
        layers_of(model_of(replace(CONFIG, loss=replace(CONFIG.loss, presence=0.0))))


# ---------------------------------------------------------------------------------------- which pictures


def test_pictures_of_a_model_of_scenes_are_the_val_scenes_every_time():
    name, records = refusal_pictures(SHIPPED, None, 12)
    again = refusal_pictures(SHIPPED, None, 12)[1]
    assert name == "scenes_easy/val" and [r.image_id for r in records] == [r.image_id for r in again]
    absent = [e.rle is None for r in records for e in r.expressions]
    assert len(records) <= 12 and tells(records) and sum(absent) == 24 and len(absent) == 48


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A store in which everything asked for is there, and the folder of a run that was finetuned on it."""
    root = tmp_path_factory.mktemp("narrow")
    narrow_store(root, 30)
    run = root / "run"
    shutil.copytree(SHIPPED, run)
    weights = read_tensors(SHIPPED / WEIGHTS)
    weights["head.judge.2.bias"][1] += 6  # it takes everything for there
    write_tensors(run / WEIGHTS, weights)
    about = read_json(SHIPPED / "recipe.json")
    data = {**about["recipe"]["data"], "source": str(root / "store")}
    model = about["recipe"]["model"] | {
        "weights": about["recipe"]["model"]["weights"] | {"start": str(SHIPPED)}
    }
    (run / "recipe.json").write_text(
        json.dumps(about | {"recipe": about["recipe"] | {"data": data, "model": model}})
    )
    return root


def narrow_store(root: Path, count: int) -> None:
    """Parts of drawn scenes as anybody's own data: photos, COCO annotations, refs; prepared into `root`/store."""
    from PIL import Image

    from uniresxx.data.scenes import scene_record

    photos = root / "photos"
    photos.mkdir(parents=True)
    images, annotations, refs = [], [], []
    for k in range(count):
        record = scene_record("scenes_easy", "train", k, 77)
        Image.fromarray(record.pixels).save(photos / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": record.height, "width": record.width})
        for e in record.expressions:
            if e.granularity == "part":
                annotations.append({"id": len(annotations), "image_id": k, "segmentation": e.rle})
                refs.append({"image_id": k, "ann_id": [len(annotations) - 1], "sentences": [e.text]})
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (root / "refs.json").write_text(json.dumps(refs))
    words = ["own", "--photos", str(photos), "--annotations", str(root / "instances.json")]
    words += ["--sentences", str(root / "refs.json"), "--name", "parts", "--licence", "own"]
    assert prepare.main([*words, "--out", str(root / "store")]) == 0


def test_a_model_finetuned_where_all_is_there_is_measured_on_what_its_start_learned(narrow):
    first, second = training_data(narrow / "run", None)
    assert first.scenes is None and "parts" in first.name and second.scenes == "scenes_easy"
    assert not tells(refusal.chosen(first, 30))
    assert refusal_pictures(narrow / "run", None, 12)[0] == "scenes_easy/val"


def test_own_data_that_asks_for_absent_things_comes_first(narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(refusal, "tells", lambda records: True)
    name, records = refusal_pictures(narrow / "run", None, 5)
    assert "parts" in name and sum(len(r.expressions) for r in records) == 10
    assert len({r.image_id for r in records}) == len(records) and all(
        len(r.expressions) <= 4 for r in records
    )


def test_data_that_is_gone_or_unknown_makes_way_for_drawn_scenes(tmp_path):
    save_pretrained(tmp_path / "plain", model_of(CONFIG))
    assert refusal_pictures(tmp_path / "plain", None, 3)[0] == "scenes_easy/val"
    about = {
        "recipe": {
            "data": {"source": "nowhere", "a_former_field": 1},
            "model": {"weights": {"start": "gone"}},
        }
    }
    (tmp_path / "plain" / "recipe.json").write_text(json.dumps(about))
    assert refusal_pictures(tmp_path / "plain", None, 3)[0] == "scenes_easy/val"
    assert DataConfig() == refusal._data_config({})


def test_lost_means_more_than_ten_points():
    before = Measured("x", 90.0, 95.0)
    assert is_lost(before, Measured("x", 79.9, 99.0)) and not is_lost(before, Measured("x", 80.1, 0.0))
    only_absent = Measured("x", 50.0, None)
    assert "T-acc 95.0 -> -" in compared(before, only_absent) and is_lost(before, only_absent)
    assert not is_lost(before, Measured("x", None, 95.0))
    assert (
        compared(before, Measured("x", 3.25, 99.0)) == "refusal on x: N-acc 90.0 -> 3.2, T-acc 95.0 -> 99.0"
    )


# ---------------------------------------------------------------------------------------- the command


def test_only_the_presence_head_changes_and_the_folder_is_a_checkpoint(narrow, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "PICTURES", 6)
    out = tmp_path / "out"
    command = [
        "calibrate-presence",
        "--from",
        str(narrow / "run"),
        "--out",
        str(out),
        "--pictures",
        "72",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "scenes_easy and parts" in said and "refusal on scenes_easy/val: N-acc" in said
    before, after = read_tensors(narrow / "run" / WEIGHTS), read_tensors(out / WEIGHTS)
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"head.judge.2.weight", "head.judge.2.bias"}
    assert all(value.dtype == after[name].dtype for name, value in before.items())
    for name in changed:  # the first row is the quality
        assert torch.equal(before[name][0], after[name][0]) and not torch.equal(
            before[name][1], after[name][1]
        )
    own, shipped = (UniRESPlusPlusConfig.from_dict(read_json(x / "config.json")) for x in (out, SHIPPED))
    assert own == shipped
    about = read_json(out / "recipe.json")
    assert (
        about["calibrated"]["absent"] > 40
        and about["recipe"] == read_json(narrow / "run/recipe.json")["recipe"]
    )
    assert (
        about["calibrated"]["held_out_loss"]["after"] < 0.5 * about["calibrated"]["held_out_loss"]["before"]
    )
    found = read_json(out / "eval/refusal/refusal.json")
    assert set(found) == {"before", "after"} and found["after"]["pictures"] == "scenes_easy/val"
    lines = [json.loads(line) for line in (out / "eval/refusal/after/predictions.jsonl").open()]
    assert len(lines) > 20 and all(np.isfinite(line["p_absent"]) for line in lines)
    assert main(command) == 0, "the same command again replaces what it wrote"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--out x", "--from"),
        ("--from model", "--out"),
        ("--from model --out model", "is the checkpoint itself"),
        ("--from nothing --out x", "does not exist"),
        ("--from film --out x", "only a UniRES++"),
        ("--from model --out x --data nowhere", "name a prepared store"),
        ("--from model --out x --pictures 0", "--pictures 0"),
        ("--from model --out run --data scenes_easy", "is a run folder"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, monkeypatch, capsys, line, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "measure", lambda *_: Measured("x", 0.0, 0.0))
    monkeypatch.setattr(
        calibrate,
        "look",
        lambda *_: Seen(torch.randn(200, 16), torch.arange(200) % 2 == 0, torch.arange(200) % 5 == 4),
    )
    save_pretrained(tmp_path / "model", model_of(CONFIG))
    save_pretrained(tmp_path / "film", FilmUNet(FilmUNetConfig(inputs=CONFIG), VOCABULARY))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert main(["calibrate-presence", *line.split()]) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


def test_a_model_that_decided_by_its_token_reads_the_presence_head_afterwards(tmp_path, monkeypatch, capsys):
    save_pretrained(tmp_path / "model", model_of(replace(CONFIG, decision_rule="token")))
    monkeypatch.setattr(calibrate, "measure", lambda *_: Measured("x", 0.0, 0.0))
    words = [
        "--from",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "out"),
        "--data",
        "scenes_easy",
        "--pictures",
        "72",
    ]
    calibrate.calibrate(parse_calibrate([*words, "--device", "cpu"]))
    assert read_json(tmp_path / "out/config.json")["decision_rule"] == "token_and_presence"
    assert "reads its presence head from now on" in capsys.readouterr().out


def test_finetune_measures_both_once_and_warns_in_one_line(narrow, tmp_path, monkeypatch, capsys):
    asked = []

    def measured(segmenter, folder, pictures, out):
        asked.append((folder, pictures[0], out.name))
        return Measured(pictures[0], 92.0 if out.name == "before" else 12.0, 96.0)

    monkeypatch.setattr(refusal, "measure", measured)
    out = tmp_path / "tuned"
    words = ["--from", str(SHIPPED), "--data", str(narrow / "store"), "--out", str(out), "--optim.steps", "1"]
    words += ["--data.batch_images", "2", "--engine.device", "cpu", "--engine.threads", "1"]
    assert main(["finetune", *words]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "refusal" in line]
    assert line.startswith("warning: refusal is lost: on scenes_easy/val: N-acc 92.0 -> 12.0")
    assert f"calibrate-presence --from {out} --out {out}-calibrated" in line
    assert [name for _, _, name in asked] == ["before", "after"] and asked[0][0] == SHIPPED
    assert asked[1][0] == out / "checkpoints/step_00000001"
    assert main(["finetune", *words]) == 0 and len(asked) == 2, "a finished run is not measured again"
    assert main(["finetune", *words, "--fresh", "--refusal_pictures", "0"]) == 0 and len(asked) == 2
    assert not (out / "eval/refusal").exists()


def test_finetune_goes_on_where_its_start_cannot_be_measured(narrow, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise InputError("the start is gone")

    monkeypatch.setattr(refusal, "report", fails)
    words = [
        "--from",
        str(SHIPPED),
        "--data",
        str(narrow / "store"),
        "--out",
        str(tmp_path),
        "--optim.steps",
        "1",
    ]
    words += ["--data.batch_images", "2", "--engine.device", "cpu", "--engine.threads", "1"]
    assert main(["finetune", *words]) == 0
    assert capsys.readouterr().err == "refusal is not measured: the start is gone\n"
    with pytest.raises(InputError, match="--refusal_pictures -1"):
        parse_finetune([*words, "--refusal_pictures", "-1"])
