"""The tables of a report, once for the page, for Markdown and for the CSV file: words and numbers, no
markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report.curves import BINS, Histogram, RejectionCurve, Reliability
from eval.report.published import Kind, Published, published_for, split_and_setting
from eval.report.runs import Run
from eval.score import number
from uniresxx.scoring.metrics import SCORE_KEYS
from uniresxx.scoring.tally import parts_scored

NAMES = {"overall": "All", "part": "Parts", "object": "Objects", "multi": "Several objects",
         "none": "Nothing there"}  # fmt: skip
BREAKDOWNS = (
    ("by_granularity", ""),
    ("by_level", "level "),
    ("by_size", "size "),
    ("by_length", "words "),
)
SHOWN_THRESHOLDS = tuple(k / 10 for k in range(1, 10))


@dataclass(frozen=True, slots=True)
class Table:
    """Header and rows of text; the first `text_columns` columns are words, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def facts(run: Run) -> dict[str, str]:
    """What a reader must know of a run before its numbers, as words."""
    entry = run.entry
    rejection = entry.get("rejection") or {}
    rule = rejected_by(entry) or "the predictions file"
    if rejection.get("threshold") is not None:
        tuned = f"tuned on {rejection['tuned_on']}" if rejection.get("tuned_on") else "given by hand"
        rule += f" > {rejection['threshold']:g}, {tuned}"
    versions = ", ".join(f"{k} {v}" for k, v in (entry.get("versions") or {}).items() if v)
    found = {
        "run": run.label,
        "expressions": f"{entry['n_expressions']:,}",
        "checkpoint": str(entry.get("checkpoint") or "not known"),
        "protocol": str(entry["protocol"]),
        "rejected by": str(rule),
        "question": str(entry.get("template") or "not known"),
    }
    if parts := parts_scored(entry):
        found["only"] = ", ".join(parts)
    if entry.get("padded_world_size"):
        found["padded as on"] = f"{entry['padded_world_size']} processes"
    return found | {"made with": versions or "not known"}


def rejected_by(entry: Mapping[str, Any]) -> str | None:
    """What decided: the rule the file was scored with; where that is its flag, the model's own rule if known."""
    rule: str | None = (entry.get("rejection") or {}).get("rule")
    own: str | None = (entry.get("decoding") or {}).get("rule")
    return own or rule if rule in (None, "flag") else rule


def headline_table(runs: Sequence[Run]) -> Table:
    """Every run in one line: what it is asked to find, and the sums."""
    header = ("run", "benchmark", "protocol", "N", "part", "object", "multi", "N-acc", "T-acc", "gIoU",
              "cIoU", "twin")  # fmt: skip
    rows = []
    for run in runs:
        whole, parts = run.entry["overall"], run.entry["by_granularity"]
        values = [parts[g]["mIoU"] for g in ("part", "object", "multi")]
        values += [whole[key] for key in ("N-acc", "T-acc", "gIoU", "cIoU")] + [run.entry["twin_score"]]
        rows.append(
            [run.label, run.title, run.entry["protocol"], f"{run.entry['n_expressions']:,}"]
            + [number(value) for value in values]
        )
    return Table(header, rows, 3)


def score_table(entry: Mapping[str, Any]) -> Table:
    """All scores overall and by every kind of group the entry knows."""
    rows = [_score_row("overall", entry["counts"]["overall"]["n"], entry["overall"])]
    for key, prefix in BREAKDOWNS:
        sizes = entry["counts"].get(key) or {}
        for name, scores in (entry.get(key) or {}).items():
            size = sizes.get(name, {}).get("n")
            if size != 0:
                rows.append(_score_row(prefix + name, size, scores))
    return Table(("asked for", "N", *SCORE_KEYS), rows)


def _score_row(name: str, size: int | None, scores: Mapping[str, float | None]) -> list[str]:
    return [name, "–" if size is None else f"{size:,}", *(number(scores.get(key)) for key in SCORE_KEYS)]


def interval_table(runs: Sequence[Run]) -> Table | None:
    """Bootstrap intervals of the runs that have them."""
    keys = ("gIoU", "cIoU", "mIoU", "Pr@0.5", "N-acc", "T-acc")
    rows = []
    for run in runs:
        found = run.entry.get("intervals") or {}
        kinds = {"overall": (run.entry["overall"], found.get("overall") or {})}
        for name, values in (found.get("by_granularity") or {}).items():
            kinds[name] = (run.entry["by_granularity"][name], values)
        twins = found.get("twin_score")
        for name, (scores, values) in kinds.items():
            if any(values.get(key) for key in keys):
                cells = [_between(scores.get(key), values.get(key)) for key in keys]
                twin = _between(run.entry.get("twin_score"), twins) if name == "overall" else ""
                rows.append([run.label, name, *cells, twin])
    return Table(("run", "asked for", *keys, "twin"), rows, 2) if rows else None


def _between(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return number(value)
    return f"{value:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"


def published_tables(runs: Sequence[Run]) -> list[tuple[Kind, Table]]:
    """Published numbers of the runs' benchmark and split, one table per kind of system, the runs among those
    of their own kind. Empty beside scenes and everything nobody has published on."""
    entry = runs[0].entry
    split, setting = split_and_setting(entry["split"])
    rows = [
        r
        for r in published_for(entry["benchmark"])
        if split in r.values and (setting is None or r.setting == setting)
    ]
    tables = []
    for kind in Kind:
        lines = []
        for metric in dict.fromkeys(r.metric for r in rows):
            lines += [_published_row(r, split) for r in sorted(
                (r for r in rows if r.kind is kind and r.metric == metric), key=lambda r: r.values[split]
            )]  # fmt: skip
            if kind is Kind.TRAINED:
                lines += [_own_row(run, setting, metric) for run in runs]
        if lines:
            header = ("method", "setting", "metric", "decoding", "protocol", "source", "value")
            tables.append((kind, Table(header, lines, 6)))
    return tables


def _published_row(row: Published, split: str) -> list[str]:
    source = row.source + (" (secondary)" if row.secondary else "")
    return [row.method, row.setting, row.metric, row.decoding.value, row.protocol, source,
            f"{row.values[split]:.1f}"]  # fmt: skip


def _own_row(run: Run, setting: str | None, metric: str) -> list[str]:
    decoding = "generated" if run.entry.get("decoding") else "not known"
    value = number(run.entry["overall"].get(metric))
    only = ", ".join(parts_scored(run.entry))
    name = f"{run.label} (this report{f', only {only}' if only else ''})"
    return [name, setting or "all", metric, decoding, run.entry["protocol"], "this report", value]


def histogram_table(histograms: Mapping[str, Histogram]) -> Table:
    """Counts per bin; a bin holds its left edge, the last one both."""
    header = ("IoU", "rejected", *(f"{k / BINS:.1f}–{(k + 1) / BINS:.1f}" for k in range(BINS)), "N")
    rows = [
        [NAMES[name], *(f"{n:,}" for n in (h.rejected, *h.counts, h.total))] for name, h in histograms.items()
    ]
    return Table(header, rows)


def rejection_table(curves: Mapping[str, RejectionCurve]) -> Table:
    """N-acc / T-acc of each run at fixed thresholds, with the area."""
    header = ("p_absent above", *(f"{t:.1f}" for t in SHOWN_THRESHOLDS), "area", "N none", "N target")
    rows = []
    for label, curve in curves.items():
        points = [curve.at(t) for t in SHOWN_THRESHOLDS]
        tail = [f"{100 * curve.area:.1f}", f"{curve.n_none:,}", f"{curve.n_target:,}"]
        rows.append([f"{label}: N-acc", *(number(100 * n) for n, _ in points), *tail])
        rows.append([f"{label}: T-acc", *(number(100 * t) for _, t in points), "", "", ""])
    return Table(header, rows)


def reliability_table(found: Mapping[str, Reliability]) -> Table:
    """Predicted and real IoU and counts per bin of the predicted one, with the calibration error."""
    header = ("predicted IoU", *(f"{k / BINS:.1f}–{(k + 1) / BINS:.1f}" for k in range(BINS)), "error")
    rows = []
    for label, r in found.items():
        rows.append([f"{label}: predicted", *(_percent(v) for v in r.predicted), f"{100 * r.error:.1f}"])
        rows.append([f"{label}: real", *(_percent(v) for v in r.real), ""])
        rows.append([f"{label}: answers", *(f"{n:,}" for n in r.counts), f"{sum(r.counts):,}"])
    return Table(header, rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
