"""Every benchmark has its options and ends with one JSON line; the tiny sizes run here."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._common import finish, interleaved, machine, median_of, record

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))


def test_every_benchmark_has_a_help_and_a_record_option(capsys):
    for name in NAMES:
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(f"benchmarks.{name}").main(["--help"])
        shown = capsys.readouterr().out
        assert stop.value.code == 0 and "--record" in shown and f"benchmarks.{name}" in shown


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="measures Linux's private memory")
def test_the_startup_benchmark_runs_small():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data_startup", "--small"], cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    headline = json.loads(done.stdout.splitlines()[-1])
    assert set(headline) == {"time_ratio", "memory_ratio", "growth_100x"}
    assert all(value > 0 for value in headline.values())


def test_the_native_set_has_the_published_counts():
    from benchmarks.data_startup import ANNOTATIONS, SMALL, SPLITS, refs

    assert [sum(counts) for counts in zip(*SPLITS.values(), strict=True)] == [19_994, 50_000, 142_210]
    assert ANNOTATIONS == 196_771
    made = list(refs(SMALL.splits, 36))
    assert len(made) == len({item["ann_id"] for item in made}) == 57
    assert sum(len(item["sentences"]) for item in made) == 110
    assert max(item["ann_id"] for item in made) <= SMALL.annotations


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
