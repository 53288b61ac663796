"""All data sets in their native forms: prepared, mixed as in stage C, trained on and measured with the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

from eval.run import run
from tests.test_box_levels import part_gradients, recipe_on
from tests.test_part_and_label_sets import everything
from train.assemble import open_job
from train.loop import DONE, train
from uniresxx.cli.data import main as data_command
from uniresxx.data.mixture.parts import mixture_named

MIXTURE = "joint,mres32m=5"


def test_the_joint_mixture_of_prepared_sets_trains_the_part_level_and_is_measured(tmp_path):
    data = tmp_path / "data"
    everything(data)
    parts = mixture_named(MIXTURE)
    for name in {part.source for part in parts}:
        assert data_command(["prepare", name, "--data", str(data), "--out", str(data / "stores" / name)]) == 0
    recipe = recipe_on("")
    recipe = replace(
        recipe,
        data=replace(recipe.data, source="", mixture=MIXTURE, batch_images=4),
        optim=replace(recipe.optim, steps=20),
    )
    job = open_job(recipe, tmp_path / "data")
    assert job.model.config.box_head.levels == ("object", "part")
    assert part_gradients(job).any()
    assert train(recipe, job, tmp_path / "run") == DONE
    drawn = json.loads((tmp_path / "run" / "data.json").read_text())
    assert {label.partition("/")[0] for label in drawn["drawn"]} == {part.source for part in parts}
    total = sum(item["expressions"] + item["texts"] for item in drawn["drawn"].values())
    for label, item in drawn["drawn"].items():  # no more than what one image shows
        assert abs(item["share"] - item["wanted"]) * total <= recipe.data.expressions_per_image, label
    assert all(
        "fingerprint" in item for item in job.extra["training_data"]
    )  # the stores, not the native files
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) >= 20
    entries = run(tmp_path / "run", ["gseval/val", "refcoco_m/val"], tmp_path / "out", data=tmp_path / "data")
    assert [(item["benchmark"], item["n_expressions"]) for item in entries] == [
        ("gseval", 4),
        ("refcoco_m", 2),
    ]
