"""Published counts of the referring-expression sets (`published_counts.csv`, with sources), to compare with ours."""

from __future__ import annotations

import csv
import re
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


# data sets as others converted them hold the same refs; jxu124's benchmark names set and split in one
_BENCHMARK = re.compile(r"(refcoco|refcoco_plus|refcocog)_(unc|google|umd)_(.+)")


def published_of(dataset: str, split: str) -> PublishedCount | None:
    """The published counts of a split, converted by others or not; None where none are known.

    lmms-lab's copies have none: rows whose mask is known to be wrong are left out of them.
    """
    if dataset == "jxu124_benchmark" and (found := _BENCHMARK.fullmatch(split)):
        dataset = f"{found[1]}_{found[2]}".replace("_unc", "").replace("_plus", "+")
        split = found[3]
    name = re.sub("^(cris|psalm|jxu124)_", "", dataset)
    return next((item for item in PUBLISHED if (item.dataset, item.split) == (name, split)), None)
