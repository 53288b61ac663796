"""A UniRES by its commands: a short training, that it goes on, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.__main__ import main as evaluate
from train.__main__ import main as train

pytestmark = pytest.mark.system
SMALL = (
    "unires_tiny_scenes", "--engine.threads", "1", "--optim.max_minutes", "None", "--data.batch_images", "2",
    "--data.expressions_per_image", "3", "--model.vision", "hidden_size=32", "num_attention_heads=2",
    "intermediate_size=64", "num_hidden_layers=2", "--log.save_every", "2",
)  # fmt: skip


def test_a_run_continues_and_is_evaluated(tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "eval"
    assert train([*SMALL, "--optim.steps", "2", "--out", run]) == 0
    assert train([*SMALL, "--optim.steps", "3", "--out", run]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert (
        evaluate(
            ["run", "--checkpoint", run, "--benchmark", "scenes_easy/val", "--limit", "2", "--out", str(out)]
        )
        == 0
    )
    (entry,) = json.loads((out / "metrics.json").read_text())
    assert entry["template"] == "{expression}" and entry["n_expressions"] > 0
