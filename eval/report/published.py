"""Published numbers from eval/published.csv, each with its source and protocol, beside the runs' own.

Three kinds of systems never share a table: models trained for the task that answer in one pass, agents that call
tools over several rounds, and models scored with (part of) the true answer in their prompt. An empty cell of the
CSV file means "not found"; "secondary" means "read in a survey or an audit, not in the original paper". The file
leaves out numbers that contradict themselves, numbers of a protocol of their own, and numbers whose kind of
system is unknown. Settings and splits that a source does not state are marked "inferred" after the method's name.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from eval.report.runs import Run
from eval.report.tables import Table
from eval.score import number
from uniresxx.data.published_counts import published_of
from uniresxx.scoring.tally import parts_scored

FILE = Path(__file__).parents[1] / "published.csv"
SAME_BENCHMARK = 0.05
SPLITS = ("val", "testA", "testB", "test")


class Kind(StrEnum):
    """What kind of system a number comes from."""

    TRAINED = "trained, single pass"
    AGENT = "agent with tools"
    TEACHER_FORCED = "true answer in the prompt"


@dataclass(frozen=True, slots=True)
class Published:
    """One method's published numbers of one metric on one benchmark, in percent by split."""

    benchmark: str
    setting: str
    method: str
    metric: str
    values: Mapping[str, float]
    kind: Kind
    protocol: str
    decoding: str  # "generated", "teacher-forced", "no text answer" or "not checked"
    source: str
    secondary: bool


def read_published(path: Path = FILE) -> list[Published]:
    """Every row of the CSV file, in its order."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            Published(
                values={split: float(row[split]) for split in SPLITS if row[split]},
                kind=Kind(row["kind"]),
                secondary=row["secondary"] == "yes",
                **{key: row[key] for key in (
                    "benchmark", "setting", "method", "metric", "protocol", "decoding", "source"
                )},
            )
            for row in csv.DictReader(stream)
        ]  # fmt: skip


def split_and_setting(split: str) -> tuple[str, str | None]:
    """Published split and setting of one of our split names: `val_part_only` is ("val", "part")."""
    for suffix, setting in (("_part_only", "part"), ("_object_part", "object and part")):
        if split.endswith(suffix):
            return split.removesuffix(suffix), setting
    return split, None


def is_the_benchmark(entry: Mapping[str, Any]) -> bool:
    """Whether what was scored has about as many pictures as the benchmark of that name (our choice: within 5 %).

    Scores of the first pictures alone say so themselves, and entries of earlier versions have no count: both are
    taken by their name.
    """
    known = published_of(entry["benchmark"], entry["split"])
    count = entry.get("n_images")
    if count is None or entry.get("limit") or known is None or known.images is None:
        return True
    return bool(abs(count - known.images) <= SAME_BENCHMARK * known.images)


def published_tables(runs: Sequence[Run]) -> list[tuple[Kind, Table]]:
    """Published numbers of the runs' benchmark and split with the runs' own, one table per kind of system.

    Empty for scenes, for every other benchmark without published numbers, and for data of the same name that is
    not the benchmark.
    """
    entry = runs[0].entry
    if not is_the_benchmark(entry):
        return []
    split, setting = split_and_setting(entry["split"])
    found = [
        row
        for row in read_published()
        if row.benchmark == entry["benchmark"] and split in row.values and setting in (None, row.setting)
    ]
    tables = []
    for kind in Kind:
        rows = []
        for metric in dict.fromkeys(row.metric for row in found):
            same = [row for row in found if row.kind is kind and row.metric == metric]
            rows += [_published_row(row, split) for row in sorted(same, key=lambda row: row.values[split])]
            if kind is Kind.TRAINED:  # `eval run` never puts the true answer into the prompt
                rows += [_own_row(run, setting, metric) for run in runs]
        if rows:
            header = ("method", "setting", "metric", "decoding", "protocol", "source", "value")
            tables.append((kind, Table(header, rows, 6)))
    return tables


def _published_row(row: Published, split: str) -> list[str]:
    source = row.source + (" (secondary)" if row.secondary else "")
    value = f"{row.values[split]:.1f}"
    return [row.method, row.setting, row.metric, row.decoding, row.protocol, source, value]


def _own_row(run: Run, setting: str | None, metric: str) -> list[str]:
    decoding = "generated" if run.entry.get("decoding") else "not known"
    only = ", ".join(parts_scored(run.entry))
    name = f"{run.label} (this report{f', only {only}' if only else ''})"
    value = number(run.entry["overall"].get(metric))
    return [name, setting or "all", metric, decoding, run.entry["protocol"], "this report", value]
