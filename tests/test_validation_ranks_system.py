"""Validation while training on two real ranks: the batches are shared, and the scores are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_engine_system import ended, launched, with_torchrun
from train.log import read_log
from uniresxx.data.catalog import load_benchmark
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.evaluation.run import evaluate
from uniresxx.imaging.masks import decode
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding

LIMIT = 6
OPTIONS = (
    "--optim.steps 2 --optim.warmup_steps 1 --data.batch_images 2 --data.expressions_per_image 3 --engine.device cpu "
    f"--engine.threads 1 --eval.every 2 --eval.limit {LIMIT} --eval.batch_images 2 --log.overlay_every 99"
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_validate_as_one_process_does(stage: int, tmp_path: Path) -> None:
    words = [
        "tiny_scenes",
        *OPTIONS.split(),
        "--engine.zero_stage",
        str(stage),
        "--out",
        str(tmp_path / "run"),
    ]
    ended(launched(*with_torchrun("-m", "train", *words)))
    folder = tmp_path / "run/eval/step_00000002"
    [entry] = json.loads((folder / "metrics.json").read_text())
    assert not list(folder.rglob("*part*"))
    records = load_benchmark("scenes_easy/val", None)[:LIMIT]
    model = load_segmenter(tmp_path / "run", device="cpu")
    alone = evaluate(model, records, "scenes_easy/val", Decoding(), tmp_path / "alone", batch_images=2)
    shared = folder / "scenes_easy/val/predictions.jsonl"
    assert [json.loads(line)["expression_id"] for line in shared.open()] == [
        e.expression_id for record in records for e in record.expressions
    ]
    overall = score_file(alone, records, "scenes_easy/val")["overall"]
    if stage < 3:
        assert shared.read_bytes() == alone.read_bytes() and entry["overall"] == overall
    else:  # the gathered weights lie elsewhere in memory, so sums round otherwise
        same_up_to_rounding(shared, alone)
        assert entry["overall"] == pytest.approx(overall, abs=0.05)
    [line] = [record for record in read_log(tmp_path / "run/log.jsonl") if "eval" in record]
    assert line["eval"]["scenes_easy/val"]["gIoU"] == entry["overall"]["gIoU"]


def same_up_to_rounding(one: Path, other: Path) -> None:
    """Same flags and texts, numbers to 1e-4, and masks to a pixel in a thousand."""
    for first, second in zip(map(json.loads, one.open()), map(json.loads, other.open()), strict=True):
        for key in ("expression_id", "rejected", "text"):
            assert first[key] == second[key]
        for key in ("score", "p_absent"):
            assert first[key] == pytest.approx(second[key], abs=1e-4)
        for key in ("mask", "mask_if_forced"):
            assert (first.get(key) is None) == (second.get(key) is None)
            if first.get(key) is not None:
                assert (decode(first[key]) ^ decode(second[key])).mean() <= 1e-3


def test_a_photo_that_cannot_be_read_on_one_rank_ends_both_with_a_line(tmp_path: Path) -> None:
    """Picture 3 of the benchmark is missing; rank 1 finds out, and nobody waits for anybody."""
    import numpy as np
    from PIL import Image

    from uniresxx.cli.data import prepare

    photos = tmp_path / "photos"
    photos.mkdir()
    images, annotations, refs = [], [], []
    for k in range(4):
        Image.fromarray(np.full((64, 64, 3), 40 * k, np.uint8)).save(photos / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "height": 64, "width": 64})
        annotations.append({"id": k, "image_id": k, "segmentation": [[8, 8, 40, 8, 40, 40, 8, 40]]})
        refs.append({"image_id": k, "ann_id": [k], "sentences": ["the mug"], "split": "val"})
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    words = ["own", "--photos", str(photos), "--annotations", str(tmp_path / "instances.json")]
    words += ["--sentences", str(tmp_path / "refs.json"), "--name", "mugs", "--licence", "own"]
    assert prepare.main([*words, "--out", str(tmp_path / "store")]) == 0
    (photos / "3.png").unlink()
    run = [
        "tiny_scenes",
        *OPTIONS.split(),
        "--eval.benchmarks",
        f"{tmp_path}/store/val",
        "--out",
        str(tmp_path / "run"),
    ]
    said = ended(launched(*with_torchrun("-m", "train", *run)), code=1)
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "process 1: " in line and "3.png" in line
