"""All data sets in their native forms, mixed as stage C mixes them, trained on and measured with the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

from eval.run import run
from tests.test_box_levels import part_gradients, recipe_on
from tests.test_part_and_label_sets import everything
from train.assemble import open_job
from train.loop import DONE, train
from uniresxx.data.mixture.parts import mixture_named


def test_the_joint_mixture_trains_the_part_level_and_the_result_is_measured(tmp_path):
    everything(tmp_path / "data")
    recipe = recipe_on("")
    recipe = replace(
        recipe,
        data=replace(recipe.data, source="", mixture="joint,mres32m=5", batch_images=4),
        optim=replace(recipe.optim, steps=20),
    )
    job = open_job(recipe, tmp_path / "data")
    assert job.model.config.box_head.levels == ("object", "part")
    assert part_gradients(job).any()
    assert train(recipe, job, tmp_path / "run") == DONE
    drawn = json.loads((tmp_path / "run" / "data.json").read_text())
    shown = json.dumps(drawn)
    assert all(part.source in shown for part in mixture_named("joint"))
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) >= 20
    entries = run(tmp_path / "run", ["gseval/val", "refcoco_m/val"], tmp_path / "out", data=tmp_path / "data")
    assert [(item["benchmark"], item["n_expressions"]) for item in entries] == [
        ("gseval", 4),
        ("refcoco_m", 2),
    ]
