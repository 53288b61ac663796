"""`python -m eval reproduce`: every benchmark that a data folder holds, beside the published numbers.

OUT gets what `python -m eval run` writes, reproduce.md (all scores, all published numbers of the same benchmarks, and
what is missing) and reproduce.csv (one row per benchmark).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.report import tables
from eval.report.published import Kind, Published, differs, published_tables, rows_of, split_and_setting
from eval.report.runs import Run
from eval.report.write import check_replaceable, template
from eval.run import run
from eval.score import load_records, number, print_table
from uniresxx.data.catalog import splits_of
from uniresxx.errors import InputError
from uniresxx.evaluation.ranks import ranks_of
from uniresxx.files import write_atomic
from uniresxx.types import ImageRecord

DATA_SETS = {
    "RefCOCO": "refcoco",
    "RefCOCO+": "refcoco+",
    "RefCOCOg (umd)": "refcocog_umd",
    "RefCOCOg (google)": "refcocog_google",
    "gRefCOCO": "grefcoco",
    "RefCOCOm": "refcocom",
    "RefCOCO-M": "refcoco_m",
    "GSEval": "gseval",
    "ReasonSeg": "reasonseg",
    "MMR": "mmr",
    "InstructPart": "instructpart",
}
GSEVAL_WHOLE = "val"  # its other splits are classes of this one
MARKS = {"reproduce.md": b"# Every benchmark", "reproduce.csv": b"run,benchmark,split,protocol,"}
METRICS = (
    "gIoU",
    "cIoU",
    "mIoU",
    "Pr@0.5",
    "N-acc",
    "T-acc",
)  # shown of a benchmark without published numbers


@dataclass(frozen=True, slots=True)
class Missing:
    """A data set, or one split of it, that cannot be evaluated."""

    name: str
    reason: str


def reproduce(
    checkpoint: str | Path, out: Path, *, data: Path, limit: int | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Evaluate every benchmark below `data` and write the table; the same command continues.

    Args:
        checkpoint: as in `run`.
        out: folder of the answers, metrics.json, reproduce.md and reproduce.csv.
        data: root of the native layouts, and of prepared stores; what it does not hold is named and left out.
        limit: only the first images of each benchmark.
        options: of `run`.

    Returns:
        The entries of metrics.json.

    Raises:
        InputError: the folder holds no benchmark at all, or as `run`.
    """
    is_main = ranks_of()[0] == 0
    console = Console()
    if is_main:
        check_replaceable(out, "reproduce", MARKS)
    found, missing = benchmarks_below(data)
    if not found:
        raise InputError(f"{data} holds none of {', '.join(DATA_SETS)}: give their root with --data DIR")
    if is_main:
        _print_missing(console, missing)
    entries = run(checkpoint, found, out, data=data, limit=limit, **options)
    if is_main:
        _write(out, entries, missing, data)
        rows = [row for entry in entries for row in comparison(entry)]
        print_table(console, _without_methods(HEADER), [*map(_without_methods, rows)])
        _print_missing(console, missing)
        console.print(f"table: {out / 'reproduce.md'}", highlight=False, markup=False, soft_wrap=True)
    return entries


def benchmarks_below(data: Path) -> tuple[list[str], list[Missing]]:
    """Every NAME/SPLIT to measure on whose annotations and photographs are below `data`, and what is missing.

    A data set without any of its splits is named once.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; --data DIR must be the root of the native layouts")
    found: list[str] = []
    missing: list[Missing] = []
    for title, name in DATA_SETS.items():
        reasons = {f"{name}/{split}": _problem(f"{name}/{split}", data) for split in measured(name)}
        there = [benchmark for benchmark, reason in reasons.items() if reason is None]
        found += there
        if there:
            missing += [Missing(benchmark, reason) for benchmark, reason in reasons.items() if reason]
        else:
            missing.append(Missing(title, str(next(iter(reasons.values())))))
    return found, missing


def measured(name: str) -> list[str]:
    """The splits of a data set that are measured on."""
    splits = [split for split in splits_of(name, None) if not split.startswith("train")]
    return [GSEVAL_WHOLE] if name == "gseval" else splits


def _problem(benchmark: str, data: Path) -> str | None:
    """Why a benchmark cannot be evaluated; None where it can."""
    try:
        records = load_records(benchmark, data)
    except InputError as error:
        return str(error)
    return None if _any_photo(records) else f"{data} has its annotations, and none of its photographs"


def _any_photo(records: Sequence[ImageRecord]) -> bool:
    places = (record.path if record.inside is None else record.inside.file for record in records)
    return any(place is not None and Path(place).exists() for place in places)


HEADER = ("benchmark", "metric", "N", "this model", "best trained", "method", "best other", "method")


def _without_methods(row: Sequence[str]) -> list[str]:
    """The columns of HEADER that fit a terminal."""
    return [row[k] for k in (0, 1, 2, 3, 4, 6)]


def comparison(entry: Mapping[str, Any]) -> list[list[str]]:
    """Rows of HEADER: each metric that is published of this benchmark, with the best numbers; else METRICS."""
    split, _ = split_and_setting(entry["split"])
    rows = rows_of(entry) if differs(entry) is None else []
    metrics = dict.fromkeys(row.metric for row in rows) or [
        k for k in METRICS if entry["overall"][k] is not None
    ]
    shown = []
    for metric in metrics:
        same = [row for row in rows if row.metric == metric]
        trained = _best([row for row in same if row.kind is Kind.TRAINED], split)
        others = _best([row for row in same if row.kind is not Kind.TRAINED], split)
        name = f"{entry['benchmark']}/{entry['split']}"
        value = number(entry["overall"].get(metric))
        shown.append([name, metric, f"{entry['n_expressions']:,}", value, *trained, *others])
    return shown


def _best(rows: Sequence[Published], split: str) -> tuple[str, str]:
    """The highest published number of a split and its method; dashes where there is none."""
    if not rows:
        return number(None), ""
    best = max(rows, key=lambda row: row.values[split])
    kind = "" if best.kind is Kind.TRAINED else f" ({best.kind})"
    return number(best.values[split]), best.method + kind


def other_data(entry: Mapping[str, Any]) -> str | None:
    """Why no published number stands beside an entry whose benchmark has some; else None."""
    reason = differs(entry) if rows_of(entry) else None
    return (
        f"{entry['benchmark']}/{entry['split']}: {reason}: no published number is shown" if reason else None
    )


def _write(out: Path, entries: Sequence[Mapping[str, Any]], missing: Sequence[Missing], data: Path) -> None:
    runs = [Run("this model", out, entry, (), None) for entry in entries]
    text = template("reproduce.md").render(
        runs=runs,
        data=str(data),
        comparison=tables.Table(HEADER, [row for entry in entries for row in comparison(entry)], 2),
        scores={run.title: tables.score_table(run.entry) for run in runs},
        published={run.title: published_tables([run]) for run in runs},
        other_data=[line for entry in entries if (line := other_data(entry))],
        missing=tables.Table(("data set", "why it is missing"), [[m.name, m.reason] for m in missing], 2),
    )
    write_atomic(out / "reproduce.md", text.encode())
    write_atomic(out / "reproduce.csv", tables.summary_csv(runs).encode())


def _print_missing(console: Console, missing: Sequence[Missing]) -> None:
    for item in missing:
        console.print(f"missing: {item.name}: {item.reason}", highlight=False, markup=False, soft_wrap=True)
