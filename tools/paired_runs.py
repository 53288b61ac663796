"""Trainings that are compared seed by seed: run, answer, score, and say differences with intervals.

A training is in OUT/seedN/ARM, its answers in OUT/seedN/eval/ARM, what the programs say in a log beside them. What is
finished is not done again, and a training that was interrupted continues.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from scipy.stats import t as student

from benchmarks._common import RESULTS, ROOT, machine
from uniresxx.data.guard import OWN_DATA
from uniresxx.data.scenes.record import scene_record
from uniresxx.data.store.preparation import Preparation
from uniresxx.data.store.write import write_store
from uniresxx.files import write_atomic
from uniresxx.types import ImageRecord

PRESET, BENCHMARK = "scenes_easy", "scenes_easy/val"
SCORES = ("part", "object", "multi", "mIoU", "N-acc", "T-acc")
Scores = Mapping[str, float]
Found = Mapping[int, Mapping[str, Scores]]  # seed -> arm -> scores
# Of every training here: one thread, as many updates as were asked for, and few pictures on the way.
COMMON = (
    "--engine.device=cpu", "--engine.threads=1", "--optim.max_minutes=None", "--log.overlay_first_seconds=1e9",
    "--log.overlay_every=100000",
)  # fmt: skip


def called(module: str, *words: str, log: Path) -> None:
    """Run a program of the clone; SystemExit with its log's place where it fails."""
    with log.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, "-m", module, *words], cwd=ROOT, stdout=stream, stderr=stream, check=False
        )
    if done.returncode:
        raise SystemExit(f"python -m {module} failed with exit code {done.returncode}: see {log}")


def train(run: Path, seed: int, words: Sequence[str]) -> None:
    """`python -m train WORDS…` with this seed into the folder `run`; the log is `run`.txt."""
    run.parent.mkdir(parents=True, exist_ok=True)
    called("train", *words, *COMMON, f"--seed={seed}", f"--out={run}", log=run.with_suffix(".txt"))


def answers_of(run: Path) -> Path:
    """Where the answers of the model in `run` are."""
    return run.parent / "eval" / run.name


def is_scored(answers: Path) -> bool:
    """Whether these answers were scored."""
    return any(answers.rglob("metrics.json"))


def score(run: Path, answers: Path | None = None, words: Sequence[str] = ()) -> Scores:
    """The scores of the model in `run` on BENCHMARK; `words` are further options of `python -m eval run`."""
    answers = answers or answers_of(run)
    if not is_scored(answers):
        asked = ["--checkpoint", str(run), "--benchmark", BENCHMARK, "--device=cpu", "--chats=0", *words]
        called("eval", "run", *asked, "--out", str(answers), log=run.with_suffix(".txt"))
    return scores_of(answers)


def scores_of(folder: Path) -> dict[str, float]:
    """mIoU of each granularity and of all, N-acc and T-acc of an evaluation, in percent."""
    [path] = folder.rglob("metrics.json")
    [entry] = json.loads(path.read_text())
    levels = {name: entry["by_granularity"][name]["mIoU"] for name in ("part", "object", "multi")}
    return levels | {name: entry["overall"][name] for name in ("mIoU", "N-acc", "T-acc")}


def step_seconds(run: Path) -> float:
    """Median seconds from one update of the training in `run` to the next, by the clock."""
    at = [json.loads(line)["seconds"] for line in (run / "log.jsonl").read_text().splitlines()]
    return median(later - earlier for earlier, later in pairwise(at))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of Student's t; the whole line for fewer than two values."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, -float("inf"), float("inf")
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def means(found: Found, arm: str) -> dict[str, float]:
    """The mean of each score over the seeds that have the arm."""
    return {key: fmean(arms[arm][key] for arms in found.values() if arm in arms) for key in SCORES}


def difference(found: Found, arm: str, base: str, key: str) -> tuple[float, float, float]:
    """Mean difference of a score over the seeds that have both arms, with its interval."""
    return interval(
        [arms[arm][key] - arms[base][key] for arms in found.values() if {arm, base} <= arms.keys()]
    )


def write_rows(name: str, found: Found, about: Mapping[str, Any]) -> Path:
    """One row for each model in benchmarks/results/NAME.csv; `about` is of all rows."""
    rows = [
        {**machine(), **about, "seed": seed, "arm": arm, **scores}
        for seed, arms in sorted(found.items())
        for arm, scores in arms.items()
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = RESULTS / f"{name}.csv"
    write_atomic(path, text.getvalue().encode())
    return path


def scenes(numbers: Iterable[int], dense: bool) -> Iterator[ImageRecord]:
    """Training scenes with their truth; conversations are left out."""
    for number in numbers:
        record = replace(scene_record(PRESET, "train", number), dialogues=())
        yield record if dense else replace(record, dense=None, boxes={})


def scene_store(path: Path, numbers: Sequence[int], dense: bool) -> Path:
    """A store of training scenes as the scene graph describes them; an existing one stays."""

    def load() -> tuple[Iterable[ImageRecord], Mapping[str, Any]]:
        return scenes(numbers, dense), {}

    inputs = {"first": numbers[0], "last": numbers[-1], "pictures": len(numbers), "dense": dense}
    work = Preparation(path.name, {"train": load}, inputs=inputs, about={"guard": {"mode": OWN_DATA}})
    return write_store(path, work, False, lambda *_: None).path
