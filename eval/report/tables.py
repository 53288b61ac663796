"""The tables of a report, the same for the page and for Markdown, and the rows of summary.csv: no markup."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval import more, talk
from eval.report.curves import BINS, Histogram, RejectionCurve, Reliability
from eval.report.runs import Run
from eval.score import mode_of, number
from uniresxx.scoring.metrics import SCORE_KEYS
from uniresxx.scoring.tally import parts_scored

NAMES = {"overall": "All", "part": "Parts", "object": "Objects", "multi": "Several objects",
         "none": "No target"}  # fmt: skip
WITH_TARGET = ("part", "object", "multi")
BREAKDOWNS = (
    ("by_granularity", ""),
    ("by_level", "level "),
    ("by_size", "size "),
    ("by_length", "words "),
)
INTERVAL_KEYS = ("gIoU", "cIoU", "mIoU", "Pr@0.5", "N-acc", "T-acc")
THRESHOLDS = tuple(k / 10 for k in range(1, 10))
BIN_NAMES = tuple(f"{k / BINS:.1f}–{(k + 1) / BINS:.1f}" for k in range(BINS))
SUMMARY_COLUMNS = (
    *(
        "run",
        "benchmark",
        "split",
        "protocol",
        "decoding",
        "rejected_by",
        "expressions",
        "checkpoint",
        "template",
    ),
    *SCORE_KEYS,
    *(f"mIoU {granularity}" for granularity in WITH_TARGET),
    *("xIoU", "cgF1", "pmF1", "IL_MCC", "AP"),
    *("twin_score", "no_answer", "seconds_per_image", "commit", "uniresxx", "python", "numpy", "torch"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """Header and rows; the first `text_columns` columns are words, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def facts(run: Run) -> dict[str, str]:
    """What a reader must know of a run before its numbers."""
    entry = run.entry
    rejection = entry.get("rejection") or {}
    rule = rejected_by(entry) or "the predictions file"
    if rejection.get("threshold") is not None:
        tuned = f"tuned on {rejection['tuned_on']}" if rejection.get("tuned_on") else "set by hand"
        rule += f" > {rejection['threshold']:g}, {tuned}"
    versions = ", ".join(f"{k} {v}" for k, v in (entry.get("versions") or {}).items() if v)
    found = {
        "run": run.label,
        "expressions": f"{entry['n_expressions']:,}",
        "checkpoint": str(entry.get("checkpoint") or "not known"),
        "protocol": str(entry["protocol"]),
        "decoding": mode_of(entry),
        "rejected by": rule,
        "prompt template": str(entry.get("template") or "not known"),
    }
    if parts := parts_scored(entry):
        found["only"] = ", ".join(parts)
    if entry.get("padded_world_size"):
        found["padded for"] = f"{entry['padded_world_size']} processes"
    return found | {"versions": versions or "not known"}


def rejected_by(entry: Mapping[str, Any]) -> str | None:
    """The rule of rejection: the one of scoring, or the model's own where the file's flag was scored."""
    rule: str | None = (entry.get("rejection") or {}).get("rule")
    own: str | None = (entry.get("decoding") or {}).get("rule")
    return own or rule if rule in (None, "flag") else rule


def headline_table(runs: Sequence[Run]) -> Table:
    """One line per run."""
    header = ("run", "benchmark", "protocol", "decoding", "N", "part", "object", "multi", "N-acc", "T-acc", "gIoU",
              "cIoU", "twin")  # fmt: skip
    rows = []
    for run in runs:
        overall, by_granularity = run.entry["overall"], run.entry["by_granularity"]
        values = [by_granularity[g]["mIoU"] for g in WITH_TARGET]
        values += [overall[key] for key in ("N-acc", "T-acc", "gIoU", "cIoU")] + [run.entry["twin_score"]]
        names = [
            run.label,
            run.title,
            run.entry["protocol"],
            mode_of(run.entry),
            f"{run.entry['n_expressions']:,}",
        ]
        rows.append(names + [number(value) for value in values])
    return Table(header, rows, 4)


def score_table(entry: Mapping[str, Any]) -> Table:
    """All scores, overall and for every subset that the entry knows."""
    rows = [_score_row("overall", entry["counts"]["overall"]["n"], entry["overall"])]
    for key, prefix in BREAKDOWNS:
        sizes = entry["counts"].get(key) or {}
        for name, scores in (entry.get(key) or {}).items():
            size = sizes.get(name, {}).get("n")
            if size != 0:
                rows.append(_score_row(prefix + name, size, scores))
    return Table(("subset", "N", *SCORE_KEYS), rows)


def talk_table(entry: Mapping[str, Any]) -> Table | None:
    """Scores of conversations; None where the entry has none."""
    rows = talk.talk_rows(entry)
    return Table(talk.HEADER, rows) if rows else None


def more_table(entry: Mapping[str, Any]) -> Table | None:
    """The numbers beside the scores; None where the entry has none."""
    rows = more.more_rows(entry)
    return Table(more.HEADER, rows) if rows else None


def _score_row(name: str, size: int | None, scores: Mapping[str, float | None]) -> list[str]:
    return [name, "–" if size is None else f"{size:,}", *(number(scores.get(key)) for key in SCORE_KEYS)]


def interval_table(runs: Sequence[Run]) -> Table | None:
    """Bootstrap intervals; None where no run has them."""
    rows = []
    for run in runs:
        entry, found = run.entry, run.entry.get("intervals") or {}
        subsets = {"overall": (entry["overall"], found.get("overall") or {})}
        for name, limits in (found.get("by_granularity") or {}).items():
            subsets[name] = (entry["by_granularity"][name], limits)
        for name, (scores, limits) in subsets.items():
            if any(limits.get(key) for key in INTERVAL_KEYS):
                cells = [_with_interval(scores.get(key), limits.get(key)) for key in INTERVAL_KEYS]
                twin = _with_interval(entry.get("twin_score"), found.get("twin_score"))
                rows.append([run.label, name, *cells, twin if name == "overall" else ""])
    return Table(("run", "subset", *INTERVAL_KEYS, "twin"), rows, 2) if rows else None


def _with_interval(value: float | None, limits: Sequence[float] | None) -> str:
    if value is None or limits is None:
        return number(value)
    return f"{value:.1f} [{limits[0]:.1f}, {limits[1]:.1f}]"


def histogram_table(histograms: Mapping[str, Histogram]) -> Table:
    """Counts per bin; a bin holds its left edge, the last bin both edges."""
    rows = [
        [NAMES[name], *(f"{n:,}" for n in (h.rejected, *h.counts, h.total))] for name, h in histograms.items()
    ]
    return Table(("IoU", "rejected", *BIN_NAMES, "N"), rows)


def rejection_table(curves: Mapping[str, RejectionCurve]) -> Table:
    """N-acc and T-acc of each run at fixed thresholds, and the area under its curve."""
    rows = []
    for label, curve in curves.items():
        points = [curve.at(threshold) for threshold in THRESHOLDS]
        tail = [f"{100 * curve.area:.1f}", f"{curve.n_none:,}", f"{curve.n_target:,}"]
        rows.append([f"{label}: N-acc", *(number(100 * n_acc) for n_acc, _ in points), *tail])
        rows.append([f"{label}: T-acc", *(number(100 * t_acc) for _, t_acc in points), "", "", ""])
    header = ("p_absent above", *(f"{t:.1f}" for t in THRESHOLDS), "area", "N no target", "N target")
    return Table(header, rows)


def reliability_table(found: Mapping[str, Reliability]) -> Table:
    """Predicted IoU, real IoU and counts per bin of the predicted one, and the calibration error."""
    rows = []
    for label, r in found.items():
        rows.append([f"{label}: predicted", *map(_percent, r.predicted), f"{100 * r.error:.1f}"])
        rows.append([f"{label}: real", *map(_percent, r.real), ""])
        rows.append([f"{label}: answers", *(f"{n:,}" for n in r.counts), f"{sum(r.counts):,}"])
    return Table(("predicted IoU", *BIN_NAMES, "error"), rows)


def _percent(value: float | None) -> str:
    return number(None if value is None else 100 * value)


def summary_csv(runs: Sequence[Run]) -> str:
    """summary.csv: one row per run, benchmark and protocol; an empty cell is not defined or not known."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, SUMMARY_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for run in runs:
        entry = run.entry
        mious = {f"mIoU {g}": entry["by_granularity"].get(g, {}).get("mIoU") for g in WITH_TARGET}
        own = {
            "run": run.label,
            "decoding": mode_of(entry),
            "rejected_by": rejected_by(entry),
            "expressions": entry["n_expressions"],
        }
        beside = {**(entry.get("instances") or {}), "xIoU": (entry.get("xIoU") or {}).get("xIoU")}
        row = {**(entry.get("versions") or {}), **entry, **entry["overall"], **mious, **beside, **own}
        writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    return stream.getvalue()
