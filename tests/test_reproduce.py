"""`python -m eval reproduce`: what a folder holds, what is missing, and the table beside published numbers."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from eval.__main__ import main, parser
from eval.reproduce import DATA_SETS, benchmarks_below, comparison, measured, other_data
from uniresxx.errors import InputError
from uniresxx.scoring.metrics import SCORE_KEYS

ROOT = Path(__file__).resolve().parents[1]
MINI_REAL = ROOT.parent / "shared" / "mini_real"
UNC = ("val", "testA", "testB")
HELD = [
    *(f"refcoco/{split}" for split in UNC),
    *(f"grefcoco/{split}" for split in UNC),
    *(f"refcocom/{split}_{kind}" for split in UNC for kind in ("part_only", "object_part")),
]
real = pytest.mark.skipif(not MINI_REAL.is_dir(), reason="needs ../shared/mini_real")


def test_no_training_split_and_no_class_of_gseval_is_measured() -> None:
    splits = {name: measured(name) for name in DATA_SETS.values()}
    assert splits["gseval"] == splits["refcoco_m"] == splits["refcocog_google"] == ["val"]
    assert splits["refcocog_umd"] == ["val", "test"] and splits["instructpart"] == ["test"]
    assert all(found for found in splits.values())


@real
def test_what_a_folder_holds_and_what_is_missing(tmp_path: Path) -> None:
    found, missing = benchmarks_below(MINI_REAL)
    assert found == HELD
    assert [item.name for item in missing] == [
        title for title, name in DATA_SETS.items() if name not in ("refcoco", "grefcoco", "refcocom")
    ]
    shutil.copytree(MINI_REAL / "refcoco", tmp_path / "refcoco")
    found, missing = benchmarks_below(tmp_path)
    assert found == [] and len(missing) == len(DATA_SETS)
    assert "none of its photographs" in missing[0].reason
    (tmp_path / "refcoco" / "instances.json").write_text("{")
    assert "instances.json" in benchmarks_below(tmp_path)[1][0].reason
    with pytest.raises(InputError, match="no such folder"):
        benchmarks_below(tmp_path / "nothing")


def entry(benchmark: str, split: str, **values: object) -> dict:
    """What `comparison` reads of an entry of metrics.json."""
    overall = dict.fromkeys(SCORE_KEYS, 50.0) | {"N-acc": None}
    return {
        "benchmark": benchmark, "split": split, "protocol": "strict", "overall": overall,
        "n_expressions": 10834, **values,
    }  # fmt: skip


def test_the_best_published_numbers_stand_beside_the_models_own() -> None:
    with (ROOT / "eval" / "published.csv").open(encoding="utf-8", newline="") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if row["benchmark"] == "grefcoco" and row["testA"] and row["split_stated"] == "yes"
        ]
    shown = {row[1]: row for row in comparison(entry("grefcoco", "testA", n_images=750))}
    assert set(shown) == {row["metric"] for row in rows}
    for metric, row in shown.items():
        for single, (value, method) in {True: row[4:6], False: row[6:8]}.items():
            same = [
                r for r in rows if r["metric"] == metric and (r["kind"] == "trained, single pass") is single
            ]
            best = max((float(r["testA"]) for r in same), default=None)
            assert value == ("–" if best is None else f"{best:.1f}")
            assert best is None or any(
                method.startswith(r["method"]) and float(r["testA"]) == best for r in same
            )
        assert row[3] == ("–" if metric == "N-acc" else "50.0")


def test_other_data_of_the_same_name_has_no_published_numbers() -> None:
    part = entry("refcoco", "val", n_images=2)
    rows = comparison(part)
    assert [row[1] for row in rows] == ["gIoU", "cIoU", "mIoU", "Pr@0.5", "T-acc"]
    assert {row[4] for row in rows} == {row[6] for row in rows} == {"–"}
    assert "refcoco/val: 2 pictures, the benchmark has 1,500" in str(other_data(part))
    assert other_data(entry("refcoco", "val", n_images=1500)) is None


@real
def test_every_benchmark_of_a_folder_with_the_tiny_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One photograph of each; the same command changes nothing, and another file is not overwritten."""
    out = tmp_path / "out"
    words = [
        "reproduce",
        "--checkpoint",
        str(ROOT / "uniresxx" / "assets" / "tiny"),
        "--data",
        str(MINI_REAL),
    ]
    words += ["--out", str(out), "--limit", "1", "--device", "cpu"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "missing: GSEval: " in shown and "missing: RefCOCO+: " in shown
    entries = json.loads((out / "metrics.json").read_text())
    assert [f"{e['benchmark']}/{e['split']}" for e in entries] == HELD
    page = (out / "reproduce.md").read_text()
    with (out / "reproduce.csv").open(newline="") as stream:
        assert [f"{row['benchmark']}/{row['split']}" for row in csv.DictReader(stream)] == HELD
    for one in entries:
        name = f"{one['benchmark']}/{one['split']}".replace("_", "\\_")
        assert f"\n## {name}\n" in page and f"- {name}: 1 pictures, the benchmark has" in page
        value = one["overall"]["gIoU"]
        assert f"| {name} | gIoU | {one['n_expressions']} | {value:.1f} |" in page
    assert "| GSEval |" in page and "Published:" not in page

    answers = {path: path.read_bytes() for path in out.glob("*/*/predictions.jsonl")}
    (out / "reproduce.md").write_text("notes of mine")
    assert main(words) == 2
    assert "reproduce.md was not written by" in capsys.readouterr().err
    (out / "reproduce.md").unlink()
    assert main(words) == 0
    before = page.split("\n## refcoco/val\n")[0]
    assert (out / "reproduce.md").read_text().split("\n## refcoco/val\n")[0] == before
    assert {path: path.read_bytes() for path in answers} == answers


def test_a_folder_without_benchmarks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "--checkpoint", "x", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "holds none of RefCOCO, RefCOCO+" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_reproduce_runs_the_command() -> None:
    def lines(*words: str) -> list[str]:
        command = ["make", "--no-print-directory", "-n", "reproduce", "VENV=venv", *words]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [line for line in shown.replace("\\\n", " ").splitlines() if " -m eval " in line]

    one, many = lines("DATA=d", "CHECKPOINT=c"), lines("DATA=d", "CHECKPOINT=c", "OUT=o", "GPUS=8")
    for found, start in ((one, ["venv/bin/python"]), (many, ["venv/bin/torchrun", "--nproc_per_node", "8"])):
        words = shlex.split(found[-1])
        at = words.index("-m")
        assert words[:at] == start
        options = parser().parse_args(words[at + 2 :])
        assert options.command == "reproduce" and options.checkpoint == "c" and options.data == Path("d")
