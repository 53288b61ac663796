"""Published counts of the referring-expression sets (`published_counts.csv`, with sources), to compare with ours."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PublishedCount:
    """What is published about one split (`all`: the whole set); None: nothing published is known."""

    dataset: str  # as in benchmark names: refcoco, refcocog_umd, …
    split: str
    images: int | None
    refs: int | None  # object records
    sentences: int | None  # expressions
    recalled: tuple[
        str, ...
    ] = ()  # fields commonly quoted that no source confirms: a difference means little
    note: str = ""
    source: str = ""

    @property
    def only_objects(self) -> bool:
        """Whether every expression of the set points at one object."""
        return self.dataset.startswith(("refcoco_", "refcoco+", "refcocog_")) or self.dataset == "refcoco"


def _number(text: str) -> int | None:
    return int(text) if text else None


def _read(path: Path) -> tuple[PublishedCount, ...]:
    with path.open(newline="", encoding="utf-8") as stream:
        return tuple(
            PublishedCount(
                row["dataset"],
                row["split"],
                _number(row["images"]),
                _number(row["refs"]),
                _number(row["sentences"]),
                tuple(row["recalled"].split()),
                row["note"],
                row["source"],
            )
            for row in csv.DictReader(stream)
        )


PUBLISHED = _read(Path(__file__).with_suffix(".csv"))


def published(dataset: str, split: str) -> PublishedCount | None:
    """The published counts of a split; None where none are known."""
    for count in PUBLISHED:
        if (count.dataset, count.split) == (dataset, split):
            return count
    return None


# data sets as others converted them hold the same refs; jxu124's benchmark names set and split in one
CONVERTED = ("cris_", "psalm_", "jxu124_")
BENCHMARK_SETS = (
    ("refcoco_unc_", "refcoco"),
    ("refcoco_google_", "refcoco_google"),
    ("refcoco_plus_unc_", "refcoco+"),
    ("refcocog_umd_", "refcocog_umd"),
    ("refcocog_google_", "refcocog_google"),
)


def published_of(dataset: str, split: str) -> PublishedCount | None:
    """The published counts that a split of a data set, converted by others or not, should have; None: none known.

    lmms-lab's copies have none: rows whose mask is known to be wrong are left out of them.
    """
    if dataset == "jxu124_benchmark":
        for start, name in BENCHMARK_SETS:
            if split.startswith(start):
                return published(name, split.removeprefix(start))
        return None
    for start in CONVERTED:
        dataset = dataset.removeprefix(start)
    return published(dataset, split)
