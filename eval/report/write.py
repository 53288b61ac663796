"""`python -m eval report`: what was scored in one or more folders as a page, as Markdown and as CSV rows.

FIRST/report/index.html holds everything and loads nothing; report.md has its tables for a repository;
summary.csv one row per run and benchmark.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eval.report.browser import PHOTO_BYTES, SCRIPT, browser
from eval.report.charts import Line, bars, lines
from eval.report.curves import BINS, decisions, iou_histograms, rejection_curve, reliability
from eval.report.gallery import Photos, gallery
from eval.report.markdown import markdown
from eval.report.page import page
from eval.report.runs import Group, Run, group_runs, read_runs
from eval.report.summary import summary_csv
from eval.report.tables import (
    NAMES,
    Table,
    facts,
    headline_table,
    histogram_table,
    interval_table,
    published_tables,
    rejection_table,
    reliability_table,
    score_table,
)
from eval.score import SCENES_NOTE, notes, overview_rows
from uniresxx.files import write_atomic


def report(folders: Sequence[Path], data: Path | None = None) -> Path:
    """Write FIRST/report/{index.html, report.md, summary.csv} about all folders (run or evaluation folders);
    returns the page's path."""
    runs = read_runs(folders, data)
    groups = group_runs(runs)
    out = folders[0] / "report"
    out.mkdir(parents=True, exist_ok=True)
    curves = [(folder, folder / "curve.png") for folder in folders if (folder / "curve.png").is_file()]
    write_atomic(out / "summary.csv", summary_csv(groups).encode())
    write_atomic(out / "report.md", markdown(groups).encode())
    write_atomic(out / "index.html", render(groups, curves).encode())
    return out / "index.html"


def render(groups: Sequence[Group], curves: Sequence[tuple[Path, Path]] = ()) -> str:
    """The page as HTML. Everything is inside: style, script, pictures as data URIs."""
    photos = Photos()
    with_cases = sum(bool(group.answered) for group in groups)
    budget = PHOTO_BYTES // max(1, with_cases)
    body = [_head(groups)]
    body += [_section(group, number, photos, budget) for number, group in enumerate(groups)]
    body += [_curve(folder, path) for folder, path in curves]
    title = ", ".join(group.title for group in groups)
    script = SCRIPT.read_text(encoding="utf-8") if with_cases else ""
    return page(title, "".join(body), photos.styles(), script)


def _head(groups: Sequence[Group]) -> str:
    total = sum(group.runs[0].entry["n_expressions"] for group in groups)
    names = ", ".join(escape(group.title) for group in groups)
    parts = [
        "<header><h1>Words to masks</h1>",
        "<p class=lead>How well a model finds what words point at in a picture — a part, an object, several "
        f"objects, or nothing at all: {total:,} expressions of {names}.</p>",
    ]
    if len(groups) > 1:
        links = "".join(f'<li><a href="#g{k}">{escape(g.title)}</a></li>' for k, g in enumerate(groups))
        parts.append(f"<ul class=contents>{links}</ul>")
    runs = [run for group in groups for run in group.runs]
    if len(runs) > 1:
        parts += ["<h2>Side by side</h2>", html_table(headline_table(runs))]
    return "".join(parts) + "</header>"


def _section(group: Group, number: int, photos: Photos, budget: int) -> str:
    parts = [f'<section><h2 id="g{number}">{escape(group.title)}</h2>']
    if group.runs[0].entry["benchmark"].startswith("scenes"):
        parts.append(f"<p class=warn>{escape(SCENES_NOTE[0].upper() + SCENES_NOTE[1:])}.</p>")
    told = {SCENES_NOTE}
    for run in group.runs:
        new = [line for line in notes(run.entry) if line not in told]
        told |= set(new)
        parts.append(_numbers(run, new, named=len(group.runs) > 1))
    if intervals := interval_table(group.runs):
        parts += ["<h3>95 % intervals</h3>", _interval_note(group.runs), html_table(intervals, dense=True)]
    parts += [_published(group.runs), _charts(group)]
    missing = dict.fromkeys(run.missing for run in group.runs if run.missing)
    parts += [f"<p class=warn>No single answers: {escape(reason)}</p>" for reason in missing]
    parts += [gallery(group, photos), browser(group, number, budget)]
    return "".join(parts) + "</section>"


def _numbers(run: Run, remarks: Sequence[str], named: bool) -> str:
    entry = run.entry
    parts = [f"<h3>{escape(run.label)}</h3>" if named else "", _facts(run)]
    if partial := entry.get("partial"):
        scored, whole = partial.get("scored"), partial.get("expressions")
        parts.append(f"<p class=warn>Partial: {scored:,} of {whole:,} expressions were answered.</p>")
    level = 4 if named else 3
    header, rows = overview_rows(entry)
    parts += [f"<h{level}>Beside the trivial answers</h{level}>", html_table(Table(header, rows), bars=True)]
    parts.append(
        "<p class=small>Percent. The twin score asks for a part, its object and its group all at once.</p>"
    )
    parts += [f"<h{level}>All scores</h{level}>", html_table(score_table(entry))]
    parts.append("<ul class=small>" + "".join(f"<li>{escape(line)}</li>" for line in remarks) + "</ul>")
    return "".join(parts)


def _facts(run: Run) -> str:
    cells = "".join(
        f"<div{' class=full' if key == 'made with' else ''}><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>"
        for key, value in facts(run).items()
    )
    return f"<dl class=facts>{cells}</dl>"


def _interval_note(runs: Sequence[Run]) -> str:
    about: Mapping[str, Any] = next(run.entry["intervals"] for run in runs if run.entry.get("intervals"))
    return (
        f"<p class=small>Bootstrap over pictures, {about.get('resamples')} resamples, seed "
        f"{about.get('seed')}. Overlapping intervals do not say that two runs are equal: compare them in "
        "pairs with <code>python -m eval compare</code>.</p>"
    )


def html_table(table: Table, *, bars: bool = False, dense: bool = False) -> str:
    """A table that scrolls sideways on small screens; with `bars` percentages get a bar behind them and the
    first row is the one that counts."""
    head = "".join(
        f"<th scope=col{' class=text' if j < table.text_columns else ''}>{escape(name)}</th>"
        for j, name in enumerate(table.header)
    )
    body = []
    for k, row in enumerate(table.rows):
        cells = [f"<th scope=row>{escape(row[0])}</th>"]
        for j, value in enumerate(row[1:], start=1):
            if j < table.text_columns:
                cells.append(f"<td class=text>{escape(value)}</td>")
            elif bars and "." in value:
                cells.append(f'<td class=bar style="--v:{value}%">{value}</td>')
            else:
                cells.append(f"<td>{escape(value)}</td>")
        kind = " class=main" if bars and k == 0 else " class=sizes" if row[0].startswith("N ") else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    inside = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="wide{" dense" if dense else ""}"><table>{inside}</table></div>'


def _published(runs: Sequence[Run]) -> str:
    """Published numbers of the same benchmark and split, one table per kind of system; none beside scenes."""
    tables = published_tables(runs)
    if not tables:
        return ""
    parts = [
        "<h3>Published numbers</h3><p class=small>Percent, on this split. Another way of scoring moves "
        "numbers by points: read the protocol before comparing. Kinds of systems are kept apart. "
        "Secondary = read in a survey or audit, not in the original.</p>"
    ]
    for kind, table in tables:
        parts += [f"<h4>{escape(kind.value)}</h4>", html_table(table, dense=True)]
    return "".join(parts)


# ----------------------------------------------------------------------------------------------- drawings


def _charts(group: Group) -> str:
    runs = group.answered
    return "".join((*map(_histograms, runs), _rejection(runs), _reliability(runs))) if runs else ""


def _histograms(run: Run) -> str:
    found = iou_histograms(run.cases)
    if not found:
        return ""
    names = ["rej.", *(f"{k / BINS:.1f}" for k in range(BINS))]
    figures = "".join(
        f"<figure><figcaption>{NAMES[name]} <span>({h.total:,})</span></figcaption>"
        + bars(f"{NAMES[name]}, {run.label}", (h.rejected, *h.counts), names, "IoU", first_apart=True)
        + "</figure>"
        for name, h in found.items()
    )
    return (
        f"<h3>How good the masks are: {escape(run.label)}</h3><p class=small>Expressions with a target by "
        "their IoU; a bar holds its left edge. Rejected targets stand apart, at the left.</p>"
        f"<div class=charts>{figures}</div>{html_table(histogram_table(found), dense=True)}"
    )


def _rejection(runs: Sequence[Run]) -> str:
    found = {run.label: curve for run in runs if (curve := rejection_curve(run.cases))}
    if not found:
        return ""
    chosen = {run.label: point for run in runs if (point := decisions(run.cases))}
    series = [
        Line(
            f"{label}, area {100 * curve.area:.1f}",
            list(zip(curve.t_acc.tolist(), curve.n_acc.tolist(), strict=True)),
            [(chosen[label][1], chosen[label][0])] if label in chosen else [],
        )
        for label, curve in found.items()
    ]
    unknown = sum(curve.unknown for curve in found.values())
    left_out = f" {unknown:,} answers without p_absent are left out." if unknown else ""
    drawing = lines("Rejection", series, "T-acc", "N-acc", diagonal=((0, 1), (1, 0)))
    return (
        f"<h3>Saying that something is not there</h3><div class=beside><figure>{drawing}</figure>"
        "<p class=small>N-acc against T-acc for every threshold of p_absent; up and right is better, the "
        "dotted line is chance. The large dot is what the model decided; it may lie off the curve where "
        "something else than p_absent decides. The area is how often an absent thing gets the higher "
        f"p_absent of a random pair.{left_out}</p></div>{html_table(rejection_table(found), dense=True)}"
    )


def _reliability(runs: Sequence[Run]) -> str:
    found = {run.label: r for run in runs if (r := reliability(run.cases))}
    if not found:
        return ""
    series = [
        Line(
            f"{label}, error {100 * r.error:.1f}",
            [(p, v) for p, v in zip(r.predicted, r.real, strict=True) if p is not None and v is not None],
            dots=True,
        )
        for label, r in found.items()
    ]
    unknown = sum(r.unknown for r in found.values())
    left_out = f" {unknown:,} answers without a score are left out." if unknown else ""
    drawing = lines("Reliability", series, "predicted IoU", "real IoU", diagonal=((0, 0), (1, 1)))
    return (
        f"<h3>Whether the model knows how good it is</h3><div class=beside><figure>{drawing}</figure>"
        "<p class=small>Mean real IoU of answers by their predicted IoU; on the dotted line both agree, "
        "below it the model is too sure. A mask where nothing is counts 0. Error = expected calibration "
        f"error in points.{left_out}</p></div>{html_table(reliability_table(found), dense=True)}"
    )


def _curve(folder: Path, path: Path) -> str:
    uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    title = f"<h2>Training of {escape(folder.name or str(folder))}</h2>"
    return f'<section>{title}<img class=curve alt="training curve" src="{uri}"></section>'
