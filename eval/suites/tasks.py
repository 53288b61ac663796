"""What every harness asks and how it scores: questions from our catalog, answers judged by our counters.

The data are read from the folder that the environment variable UNIRESXX_DATA names (as --data in `python -m eval`).
Answers are judged by the protocol `strict`, one by one; sums of whole numbers remain, so that scores do not depend
on order or on the number of processes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from eval.score import load_records
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.scoring.metrics import Counts
from uniresxx.scoring.predictions import JsonlWriter, from_json, sizes_of
from uniresxx.scoring.protocols import STRICT
from uniresxx.suites.answers import line_of
from uniresxx.types import Expression, Granularity, ImageRecord

DATA = "UNIRESXX_DATA"
UNC = ("val", "testA", "testB")
PARTS = tuple(f"{split}_{kind}" for split in UNC for kind in ("part_only", "object_part"))
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {  # group of tasks -> (data set, splits)
    "refcoco_res": ("refcoco", UNC),
    "refcoco+_res": ("refcoco+", UNC),
    "refcocog_res": ("refcocog_umd", ("val", "test")),
    "grefcoco_res": ("grefcoco", UNC),
    "refcocom_res": ("refcocom", PARTS),
    "gseval": ("gseval", ("val",)),
}
BENCHMARKS = {  # task -> NAME/SPLIT
    f"{group}_{split}": f"{name}/{split}" for group, (name, splits) in GROUPS.items() for split in splits
}
SCORES = ("gIoU", "cIoU", "mIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9", "N-acc", "T-acc")
GRANULARITIES = (Granularity.PART, Granularity.OBJECT, Granularity.MULTI)
METRICS = (*SCORES, *(f"mIoU_{granularity.value}" for granularity in GRANULARITIES))
Judged = Mapping[str, Any]  # `granularity`, and `row`: the counters of one answer, by metrics.COUNTERS


def benchmark_of(task: str) -> str:
    """NAME/SPLIT of a task; InputError lists the known ones."""
    if task not in BENCHMARKS:
        raise InputError(f"unknown task {task!r}; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[task]


def data_root() -> Path | None:
    """The folder that UNIRESXX_DATA names."""
    place = os.environ.get(DATA)
    return Path(place) if place else None


@lru_cache(maxsize=8)
def _records(benchmark: str, data: Path | None) -> Sequence[ImageRecord]:
    if data is None:
        raise InputError(f"{benchmark}: name the root of the data sets by the environment variable {DATA}")
    return load_records(benchmark, data)


def records_of(benchmark: str) -> Sequence[ImageRecord]:
    """The images of a benchmark, read once. InputError where UNIRESXX_DATA is not set or does not hold it."""
    return _records(benchmark, data_root())


def documents(benchmark: str) -> list[dict[str, Any]]:
    """One row per expression, image by image: where it is, its id and its text."""
    return [
        {
            "benchmark": benchmark,
            "image": number,
            "expression": place,
            "expression_id": expression.expression_id,
            "text": expression.text,
        }
        for number, record in enumerate(records_of(benchmark))
        for place, expression in enumerate(record.expressions)
    ]


@lru_cache(maxsize=2)
def _photo(benchmark: str, number: int, data: Path | None) -> np.ndarray:
    return photo_of(_records(benchmark, data)[number])


def photo(document: Mapping[str, Any]) -> np.ndarray:
    """The photo of a document, uint8 (y, x, 3); neighbours share it."""
    return _photo(document["benchmark"], document["image"], data_root())


def judge(document: Mapping[str, Any], answer: str) -> tuple[dict[str, Any], Judged]:
    """The line of predictions.jsonl that an answer stands for, and its counters."""
    record, expression = _asked(document)
    size = (record.height, record.width)
    line = line_of(expression.expression_id, answer, size)
    outcome = STRICT.judge(expression, from_json(line, size))
    return line, {"granularity": outcome.granularity.value, "row": outcome.row()}


def _asked(document: Mapping[str, Any]) -> tuple[ImageRecord, Expression]:
    record = records_of(document["benchmark"])[document["image"]]
    expression = record.expressions[document["expression"]]
    if expression.expression_id != document["expression_id"]:
        raise InputError(
            f"{document['expression_id']} is {expression.expression_id} in the data of {DATA}: the data changed "
            "since the questions were made; start again"
        )
    return record, expression


def score_predictions(benchmark: str, answers: Mapping[str, str], path: Path) -> dict[str, float]:
    """Write the predictions file that answers (by expression id) stand for, and score it.

    Returns the scores in percent that are defined: of all expressions, and mIoU by granularity. Raises InputError
    where an expression has no answer.
    """
    records = records_of(benchmark)
    sizes = sizes_of(records)
    path.unlink(missing_ok=True)
    with JsonlWriter(path) as lines:
        lines.write_all(line_of(name, answer, sizes[name]) for name, answer in answers.items())
    entry = score_file(path, records, benchmark)
    by_part = {f"mIoU_{g.value}": entry["by_granularity"][g.value]["mIoU"] for g in GRANULARITIES}
    return {key: value for key, value in {**entry["overall"], **by_part}.items() if value is not None}


def score_of(metric: str) -> Callable[[Iterable[Judged]], float]:
    """The function from the counters of all answers to one of METRICS, in percent; NaN where it is not defined."""
    key, _, granularity = metric.partition("_")

    def aggregate(judged: Iterable[Judged]) -> float:
        rows = [one["row"] for one in judged if granularity in ("", one["granularity"])]
        counts = Counts([sum(column) for column in zip(*rows, strict=True)]) if rows else Counts()
        value = counts.scores()[key]
        return math.nan if value is None else value

    return aggregate
