"""Exports opened by the packages that they are written for: `pytest -m interop` (docs/use.md has the results).

Each package is installed into a throw-away environment; one that pip cannot get is skipped, with pip's last line.
With UNIRESXX_INTEROP=DIR the environments stay in DIR and are used again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_annotations import DOT, LID, MADE, PAIR, RING, photos
from tests.test_examples import mask_of, photo
from uniresxx.annotations import write
from uniresxx.annotations.runs import run_lengths

pytestmark = [pytest.mark.interop, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tests" / "data" / "interop"
MASKS = {"ring": RING, "lid": LID, "pair": PAIR, "dot": DOT}


@pytest.fixture(scope="session")
def environments(tmp_path_factory):
    kept = os.environ.get("UNIRESXX_INTEROP")
    return Path(kept) if kept else tmp_path_factory.mktemp("environments")


@pytest.fixture
def read(environments):
    """{label: runs} of what a script prints in the environment of a package."""

    def run(package: str, script: str, *words: object, with_uniresxx: bool = False) -> dict[str, list[int]]:
        python = environments / package / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", environments / package], check=True)
            install = [python, "-m", "pip", "install", "--quiet", package, "numpy", "pillow"]
            done = subprocess.run(install, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(environments / package)
                pytest.skip(f"pip cannot install {package}: {done.stderr.strip().splitlines()[-1:]}")
        here = (
            [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
            if with_uniresxx
            else []
        )
        done = subprocess.run(
            [python, SCRIPTS / script, *map(str, words)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(here)},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return {label: runs for _, label, runs in json.loads(done.stdout.splitlines()[-1])}

    return run


def exported(tmp_path: Path, name: str) -> Path:
    write(name, photos(tmp_path / "photos"), tmp_path / "out", provenance=MADE)
    return tmp_path / "out"


def expected(**more: np.ndarray) -> dict[str, list[int]]:
    return {label: run_lengths(mask.ravel()) for label, mask in {**MASKS, **more}.items()}


def test_supervision(tmp_path, read):
    out = exported(tmp_path, "supervision")
    assert (
        read("supervision", "supervision_reads.py", tmp_path / "photos", out / "instances.json") == expected()
    )


def test_label_studio(tmp_path, read):
    out = exported(tmp_path, "labelstudio")
    files = out / "tasks.json", out / "labeling_config.xml"
    assert read("label-studio-sdk", "label_studio_reads.py", *files) == expected()


def test_datumaro_reads_cvat(tmp_path, read):
    out = exported(tmp_path, "cvat")
    shutil.copytree(tmp_path / "photos", out / "images")
    assert read("datumaro", "datumaro_reads.py", "cvat", out / "annotations.xml") == expected()


def test_datumaro_reads_coco(tmp_path, read):
    out, place = exported(tmp_path, "coco"), tmp_path / "set"
    shutil.copytree(tmp_path / "photos", place / "images" / "train")
    (place / "annotations").mkdir()
    shutil.copy(out / "instances.json", place / "annotations" / "instances_train.json")
    assert read("datumaro", "datumaro_reads.py", "coco", place) == expected()


def test_datumaro_reads_indexed_png(tmp_path, read):
    out = exported(tmp_path, "voc-png")
    (out / "ImageSets" / "Segmentation").mkdir(parents=True)
    (out / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    found = read("datumaro", "datumaro_reads.py", "voc_segmentation", out)
    wanted = expected(ring=RING & ~LID)  # a pixel has one class
    assert {label: found[label] for label in ("ring", "lid")} == {
        label: wanted[label] for label in ("ring", "lid")
    }


def test_fiftyone(tmp_path, read):
    assert read("fiftyone", "fiftyone_reads.py", exported(tmp_path, "fiftyone")) == expected()


def test_the_cvat_function_over_the_real_sdk(tmp_path, read):
    path, function = (
        photo(tmp_path / "a.png", "red", "blue"),
        ROOT / "examples" / "cvat_function" / "function.py",
    )
    words = function, path, "the red thing", "a green thing", "the blue thing"
    found = read("cvat-sdk", "cvat_function_runs.py", *words, with_uniresxx=True)
    assert found == {
        f"the {colour} thing": run_lengths(mask_of(colour).ravel()) for colour in ("red", "blue")
    }
