"""summary.csv: one row per run, benchmark and protocol, for a spreadsheet or a later plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.runs import Group
from eval.report.tables import rejected_by
from uniresxx.scoring.metrics import SCORE_KEYS

PARTS = ("part", "object", "multi")
COLUMNS = (
    *("run", "benchmark", "split", "protocol", "rejected_by", "expressions", "checkpoint", "template"),
    *SCORE_KEYS,
    *(f"mIoU {part}" for part in PARTS),
    *("twin_score", "no_answer", "seconds_per_image", "commit", "uniresxx", "python", "numpy", "torch"),
)


def summary_csv(groups: Sequence[Group]) -> str:
    """The table as text; empty cells are values that are not defined or not known."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in groups:
        for run in group.runs:
            writer.writerow({"run": run.label} | _row(run.entry))
    return stream.getvalue()


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    versions = entry.get("versions") or {}
    scores = {key: _rounded(entry["overall"].get(key)) for key in SCORE_KEYS}
    parts = {f"mIoU {p}": _rounded(entry["by_granularity"].get(p, {}).get("mIoU")) for p in PARTS}
    own = {key: entry.get(key) for key in ("benchmark", "split", "protocol", "checkpoint", "template")}
    made = {key: versions.get(key) for key in ("commit", "uniresxx", "python", "numpy", "torch")}
    return {
        **own,
        **scores,
        **parts,
        **made,
        "rejected_by": rejected_by(entry),
        "expressions": entry["n_expressions"],
        "twin_score": _rounded(entry.get("twin_score")),
        "no_answer": entry.get("no_answer"),
        "seconds_per_image": _rounded(entry.get("seconds_per_image")),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
