"""The data engine in real processes: killed at random moments, with workers that die, on this machine and on Ray."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data_engine.model import Model
from data_engine.recipe import drawn
from uniresxx.data.scenes.presets import preset_of
from uniresxx.data.scenes.record import build_scene
from uniresxx.data.store.read import Store

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("ENGINE_KILLS", "3"))  # of each executor; docs/data_engine.md has the result of 30
EXECUTORS = {"local": ["--workers", "2"], "ray": ["--executor", "ray", "--workers", "1"]}
DEADLY = """
import os, signal
import data_engine.steps.words as words
captioned = words._captioned
def deadly(options, captioner, picture, photo):
    if picture.name == "002.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return captioned(options, captioner, picture, photo)
words._captioned = deadly
"""
HUNGRY = """
import numpy
import data_engine.steps.parts as parts
with_parts = parts._with_parts
def hungry(options, segmenter, vocabulary, picture, photo):
    if picture.name == "005.png":
        numpy.empty(1 << 50, dtype=numpy.uint8)
    return with_parts(options, segmenter, vocabulary, picture, photo)
parts._with_parts = hungry
"""


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Eight scenes and a recipe without the model of the round trip."""
    (tmp_path / "images").mkdir()
    for number in range(8):
        scene = build_scene(preset_of("scenes_easy"), "val", number, 0)
        Image.fromarray(scene.pixels_yx3).save(tmp_path / "images" / f"{number:03d}.png")
    model, recipe = Model(kind="drawn", source="scenes_easy:60"), drawn()
    steps = [replace(step, model=model) if hasattr(step, "model") else step for step in recipe.steps[:-1]]
    content = replace(recipe, steps=tuple(steps), pictures_per_shard=2, budget=0.2).as_json()
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    return tmp_path


def command(given: Path, out: str, executor: str) -> list[str]:
    return [sys.executable, "-m", "data_engine", "run", str(given / "recipe.json"), "--images",
            str(given / "images"), "--out", str(given / out), *EXECUTORS[executor]]  # fmt: skip


def run(given: Path, out: str, executor: str, **more: str) -> None:
    done = subprocess.run(
        command(given, out, executor),
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def content(store: Path) -> dict[str, bytes]:
    """The store's files; its metadata names nothing of how it was made."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.is_file()}


@pytest.mark.timeout(900 + 60 * KILLS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_killed_at_random_moments_the_store_is_the_same(given: Path, executor: str) -> None:
    run(given, "undisturbed", "local")
    start = time.monotonic()
    run(given, "timed", executor)
    duration = time.monotonic() - start
    assert content(given / "timed") == content(given / "undisturbed")
    draw, left = random.Random(0), KILLS
    while left:
        process = subprocess.Popen(
            command(given, "killed", executor), cwd=ROOT, env=environment(), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, duration))
        if process.poll() is not None:  # it was done before: begin again
            assert process.returncode == 0
            assert content(given / "killed") == content(given / "undisturbed")
            subprocess.run(["rm", "-r", str(given / "killed"), str(given / "killed.engine")], check=True)
        else:
            left -= 1
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run(given, "killed", executor)
    assert content(given / "killed") == content(given / "undisturbed")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_fails_is_in_quarantine_with_its_reason_and_counts_in_the_budget(
    given: Path, executor: str
) -> None:
    (given / "hooks").mkdir()
    (given / "hooks" / "sitecustomize.py").write_text(DEADLY + HUNGRY)
    whole = (given / "images" / "007.png").read_bytes()
    (given / "images" / "007.png").write_bytes(whole[: len(whole) // 2])
    more = environment(PYTHONPATH=os.pathsep.join([str(given / "hooks"), str(ROOT)]))
    done = subprocess.run(
        command(given, "store", executor), cwd=ROOT, env=more, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "3 pictures failed" in done.stderr and "allows 2 of 8" in done.stderr
    recipe = json.loads((given / "recipe.json").read_text())
    (given / "recipe.json").write_text(json.dumps(recipe | {"budget": 0.375}))
    run(given, "store", executor, PYTHONPATH=more["PYTHONPATH"])
    lines = map(json.loads, (given / "store.engine" / "quarantine.jsonl").read_text().splitlines())
    reasons = {line["picture"]: line["reason"] for line in lines}
    assert reasons.keys() == {"002.png", "005.png", "007.png"}
    assert reasons["002.png"] == "caption: its worker died there twice"
    assert (
        reasons["005.png"].startswith("parts: ") and "MemoryError: Unable to allocate" in reasons["005.png"]
    )
    assert reasons["007.png"].startswith("look: 007.png")
    assert len(Store.open(given / "store")) == 5


def test_stopped_by_a_signal_it_says_so(given: Path) -> None:
    process = subprocess.Popen(
        command(given, "store", "local"), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    process.stderr.readline()  # the first step is done
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait() == 75 and "the same command continues" in said


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_model_that_is_not_there_is_one_line(given: Path, executor: str) -> None:
    recipe = json.loads((given / "recipe.json").read_text())
    recipe["steps"][0]["model"] = {"kind": "zero_shot", "source": "no-such-folder"}
    (given / "recipe.json").write_text(json.dumps(recipe))
    done = subprocess.run(
        command(given, "store", executor),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: model zero_shot: 'no-such-folder'")
