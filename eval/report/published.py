"""Published numbers from eval/published.csv, each with its source and protocol, beside the runs' own.

Kinds of systems never share a table (`Kind`). An empty cell of the CSV file means "not found"; "secondary" means
"read in a survey or an audit, not in the original paper". The file leaves out numbers that contradict themselves,
numbers of a protocol of their own, and numbers whose kind of system is unknown. A number whose source does not state
its split (`split_stated` no, "inferred" after the method's name) is in the file and in no table.
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
from uniresxx.scoring.protocols.cris import CRIS_VALIDATE
from uniresxx.scoring.tally import parts_scored

FILE = Path(__file__).parents[1] / "published.csv"
SAME_BENCHMARK = 0.05
SPLITS = ("val", "testA", "testB", "test")


class Kind(StrEnum):
    """What kind of system a number comes from."""

    TRAINED = "trained, single pass"  # trained for the task, one answer
    TRAINING_FREE = "training-free"  # other models put together
    NOUN_PHRASES = "noun phrases"  # trained to find noun phrases, asked whole expressions
    AGENT = "agent with tools"  # several rounds of tool calls
    TEACHER_FORCED = "true answer in the prompt"  # or a part of it


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
    split_stated: bool


def read_published(path: Path = FILE) -> list[Published]:
    """Every row of the CSV file, in its order."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            Published(
                values={split: float(row[split]) for split in SPLITS if row[split]},
                kind=Kind(row["kind"]),
                secondary=row["secondary"] == "yes",
                split_stated=row["split_stated"] == "yes",
                **{key: row[key] for key in (
                    "benchmark", "setting", "method", "metric", "protocol", "decoding", "source"
                )},
            )
            for row in csv.DictReader(stream)
        ]  # fmt: skip


def split_and_setting(split: str) -> tuple[str, str]:
    """Published split and setting of one of our split names: `val_part_only` is ("val", "part")."""
    settings = {"_part_only": "part", "_object_part": "object and part"}  # RefCOCOm's lists
    settings |= {f"_{name}": name for name in ("stuff", "part", "multi", "single")}  # GSEval's classes
    for suffix, setting in settings.items():
        if split.endswith(suffix):
            return split.removesuffix(suffix), setting
    return split, "all"


def differs(entry: Mapping[str, Any]) -> str | None:
    """In what an entry is not the benchmark of its name, in words; None where it is.

    The pictures are compared with the published number, and so are the expressions where it is confirmed. Our choice:
    within 5 %, because copies of a data set leave out a few. A benchmark without published counts cannot be checked.
    """
    known = published_of(entry["benchmark"], entry["split"])
    if known is None:
        return "how large the benchmark is, is not known"
    pairs: dict[str, tuple[int | None, int | None]] = {"pictures": (entry.get("n_images"), known.images)}
    if not {"sentences", "refs"} & set(known.recalled):
        asked = known.refs if entry["protocol"] == CRIS_VALIDATE.name else known.sentences
        pairs["expressions"] = (entry.get("n_expressions"), asked)
    if partial := entry.get("partial"):
        pairs["answers"] = (partial["scored"], partial["expressions"])
    checked = [(what, n, whole) for what, (n, whole) in pairs.items() if n is not None and whole is not None]
    for what, count, whole in checked:
        if abs(count - whole) > SAME_BENCHMARK * whole:
            return f"{count:,} {what}, the benchmark has {whole:,}"
    return None if checked else "how many pictures were scored is not known"


def rows_of(entry: Mapping[str, Any]) -> list[Published]:
    """The published numbers of the benchmark and split that an entry names."""
    split, setting = split_and_setting(entry["split"])
    return [
        row
        for row in read_published()
        if (row.benchmark, row.setting) == (entry["benchmark"], setting)
        and split in row.values
        and row.split_stated
    ]


def not_compared(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Label and reason of each run that stands beside no published number though its benchmark's name has some."""
    if not rows_of(runs[0].entry):
        return []
    return [(run.label, reason) for run in runs if (reason := differs(run.entry))]


def published_tables(runs: Sequence[Run]) -> list[tuple[Kind, Table]]:
    """Published numbers of the runs' benchmark and split with the runs' own, one table per kind of system.

    Only runs that scored the whole benchmark, by its counts, have a row. Empty where none did, for scenes, and for
    every other benchmark without published numbers.
    """
    found = rows_of(runs[0].entry)
    whole = [run for run in runs if differs(run.entry) is None]
    if not found or not whole:
        return []
    split, setting = split_and_setting(runs[0].entry["split"])
    tables = []
    for kind in Kind:
        rows = []
        for metric in dict.fromkeys(row.metric for row in found):
            same = [row for row in found if row.kind is kind and row.metric == metric]
            rows += [_published_row(row, split) for row in sorted(same, key=lambda row: row.values[split])]
            if kind is Kind.TRAINED:  # `eval run` never puts the true answer into the prompt
                rows += [_own_row(run, setting, metric) for run in whole]
        if rows:
            header = ("method", "setting", "metric", "decoding", "protocol", "source", "value")
            tables.append((kind, Table(header, rows, 6)))
    return tables


def _published_row(row: Published, split: str) -> list[str]:
    source = row.source + (" (secondary)" if row.secondary else "")
    value = f"{row.values[split]:.1f}"
    return [row.method, row.setting, row.metric, row.decoding, row.protocol, source, value]


def _own_row(run: Run, setting: str, metric: str) -> list[str]:
    decoding = "generated" if run.entry.get("decoding") else "not known"
    only = ", ".join(parts_scored(run.entry))
    name = f"{run.label} (this report{f', only {only}' if only else ''})"
    value = number(run.entry["overall"].get(metric))
    return [name, setting, metric, decoding, run.entry["protocol"], "this report", value]
