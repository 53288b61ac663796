"""Every benchmark has its options and says what it found in one JSON line; the tiny sizes run here."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._common import finish, interleaved, machine, median_of, record

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))


def run(name, *words, **changes):
    return subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | changes,
        capture_output=True,
        text=True,
        timeout=600,  # a busy machine takes minutes to import torch
        check=False,
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_a_help_and_a_record_switch(name):
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "--record" in done.stdout and f"benchmarks.{name}" in done.stdout


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="measures Linux's private memory")
def test_the_startup_benchmark_runs_small(tmp_path):
    python_2 = (
        tmp_path / "refer.py"
    )  # in the shape of the public one: old prints, cPickle, drawing at the top
    python_2.write_text(
        "import cPickle as pickle, json, os.path as osp\n"
        "import skimage.io as io\nfrom matplotlib.patches import Polygon, Rectangle\nfrom external import mask\n"
        "class REFER:\n"
        "\tdef __init__(self, data_root, dataset='refcoco', splitBy='unc'):\n"
        "\t\tprint 'loading %s' % dataset\n"
        "\t\tself.refs = pickle.load(open(osp.join(data_root, dataset, 'refs('+splitBy+').p'), 'r'))\n"
        "\t\tself.rows = json.load(open(osp.join(data_root, dataset, 'instances.json'), 'r'))\n"
        "\t\tassert len(self.refs) == 57 and len(self.rows['annotations']) == 100\n"
    )
    for words in ((), ("--refer", str(python_2))):
        done = run("data_startup", "--small", "--work", str(tmp_path / "work"), *words)
        assert done.returncode == 0, done.stderr
        headline = json.loads(done.stdout.splitlines()[-1])
        assert set(headline) == {"time_ratio", "memory_ratio", "growth_100x"}
        assert all(value > 0 for value in headline.values())
        assert f"classic_is: {'refer.py' if words else 'built in'}" in done.stdout
    wrong = run(
        "data_startup", "--small", "--work", str(tmp_path / "work"), "--refer", str(tmp_path / "none.py")
    )
    assert wrong.returncode == 2 and "none.py" in wrong.stderr


def test_the_native_set_has_the_published_counts():
    from benchmarks.data_startup import ANNOTATIONS, SMALL, SPLITS, _refs

    assert [sum(counts) for counts in zip(*SPLITS.values(), strict=True)] == [19_994, 50_000, 142_210]
    assert ANNOTATIONS == 196_771
    refs = list(_refs(SMALL.splits, 36))
    assert len(refs) == len({item["ann_id"] for item in refs}) == 57
    assert sum(len(item["sentences"]) for item in refs) == 110
    assert max(item["ann_id"] for item in refs) <= SMALL.annotations


def test_arms_take_turns_and_start_in_turn():
    seen = []
    arms = {name: (lambda name=name: seen.append(name) or name.upper()) for name in "ab"}
    assert interleaved(arms, 3) == {"a": ["A"] * 3, "b": ["B"] * 3}
    assert seen == list("abbaab")
    assert median_of([3, 1, 2]) == 2 and median_of([4, 1, 2, 3]) == 2.5


def test_a_row_says_where_it_was_measured_and_older_rows_stay(tmp_path):
    path = record("x", {"ratio": 2.5}, {"sizes": [1, 2]}, tmp_path)
    record("x", {"ratio": 3.0, "more": 1}, {"sizes": [1, 2]}, tmp_path)
    with path.open(newline="", encoding="utf-8") as stream:
        first, second = csv.DictReader(stream)
    assert (first["ratio"], first["more"], second["ratio"], second["more"]) == ("2.5", "", "3.0", "1")
    assert json.loads(second["details"]) == {"sizes": [1, 2]}
    for key in ("cpu", "cores", "gpu", "python", "torch", "numpy", "commit", "date"):
        assert key in first
    assert first["python"] == machine()["python"] and first["cores"].isdigit()


def test_the_last_line_is_the_headline(tmp_path, capsys):
    finish("x", {"ratio": 2.0}, {"seconds": 1}, False, tmp_path)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ratio": 2.0}
    assert not list(tmp_path.iterdir())
    finish("x", {"ratio": 2.0}, {"seconds": 1}, True, tmp_path)
    assert (tmp_path / "x.csv").is_file()
    with pytest.raises(AssertionError, match="ratio"):
        finish("x", {"ratio": float("nan")}, {}, False, tmp_path)
