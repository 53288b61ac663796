"""A newcomer's way with real processes: train a few steps, evaluate, report, segment, chat, wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ("train", "tiny_scenes", "--data.batch_images", "2", "--optim.steps")

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


def program(*words: str | Path, say: str = "", code: int = 0) -> str:
    """Run `python -m WORDS` from the clone; returns stdout, and stderr where a failure is expected."""
    run = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        input=say,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == code, f"{words}: {run.returncode}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    return run.stderr if code else run.stdout


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a few steps: knows nothing, but has everything."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    program(*TRAIN, "4", "--out", folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn scene as a file."""
    from uniresxx.data.scenes import scene_record

    pixels = scene_record("scenes_easy", "val", 0).pixels
    assert pixels is not None
    path = tmp_path_factory.mktemp("photos") / "scene.png"
    Image.fromarray(pixels).save(path)
    return path


def test_a_run_leaves_what_it_promises(out: Path) -> None:
    assert (out / "recipe.json").is_file() and (out / "log.jsonl").is_file()
    checkpoints = sorted((out / "checkpoints").glob("step_*"))
    assert checkpoints
    names = {path.name for path in checkpoints[-1].iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= names


def test_evaluate_twice_and_report(out: Path) -> None:
    asked = ("--checkpoint", out, "--benchmark", "scenes_easy/val", "--limit", "6")
    command = ("eval", "run", *asked, "--out", out)
    program(*command)
    first = json.loads((out / "metrics.json").read_text())
    predictions = out / "scenes_easy" / "val" / "predictions.jsonl"
    answered = predictions.read_bytes()
    program(*command)  # continues: nothing is asked again
    assert predictions.read_bytes() == answered
    assert json.loads((out / "metrics.json").read_text())[0]["overall"] == first[0]["overall"]
    entry = first[0]
    assert (entry["benchmark"], entry["split"], entry["protocol"]) == ("scenes_easy", "val", "strict")
    assert entry["n_expressions"] == len(answered.splitlines())
    assert {"part", "object", "multi", "none"} == set(entry["by_granularity"])
    program("eval", "report", out)
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "scenes_easy" in page and 'src="http' not in page


def test_torchrun_answers_each_expression_once_and_the_folder_continues(out: Path, tmp_path: Path) -> None:
    asked = ("--checkpoint", out, "--benchmark", "scenes_easy/val", "--limit", "4", "--out", tmp_path)
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    program(*launcher, "eval", "run", *asked)
    answers = (tmp_path / "scenes_easy/val/predictions.jsonl").read_text().splitlines()
    names = [json.loads(line)["expression_id"] for line in answers]
    assert (
        len(set(names))
        == len(names)
        == json.loads((tmp_path / "metrics.json").read_text())[0]["n_expressions"]
    )
    program("eval", "run", *asked)
    assert (tmp_path / "scenes_easy/val/predictions.jsonl").read_text().splitlines() == answers


def test_segment_and_chat(out: Path, photo: Path, tmp_path: Path) -> None:
    texts = ("the red house", "the houses")
    program("uniresxx", "segment", photo, *texts, "--checkpoint", out, "--out", tmp_path)
    record = json.loads((tmp_path / "scene.json").read_text())
    assert [entry["text"] for entry in record["expressions"]] == list(texts)
    overlay = np.asarray(Image.open(tmp_path / "scene.overlay.png"))
    assert overlay.ndim == 3
    talk = f":image {photo}\nsegment the red house.\nand its roof?\n:help\n"
    said = program("chat_demo", "--checkpoint", out, "--terminal", say=talk)
    assert ":image" in said


def test_wrong_input_is_one_line_and_exit_2(out: Path, photo: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    to = ("--out", tmp_path / "out")
    for words in (
        ("train", "tiny_scene", *to),
        ("eval", "run", "--checkpoint", nothing, "--benchmark", "scenes_easy/val", *to),
        ("eval", "run", "--checkpoint", out, "--benchmark", "scenes_easy/evening", *to),
        ("uniresxx", "segment", tmp_path / "no.jpg", "the house", "--checkpoint", out, *to),
        ("uniresxx", "segment", photo, " ", "--checkpoint", out, *to),
        ("uniresxx", "fly"),
    ):
        lines = program(*words, code=2).strip().splitlines()
        assert len(lines) == 1, lines
