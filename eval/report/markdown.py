"""report.md: the tables of a report as they read well in a repository; pictures stay in the page."""

from __future__ import annotations

from collections.abc import Sequence

from eval.report.cases import choose_cases
from eval.report.curves import iou_histograms, rejection_curve, reliability
from eval.report.runs import Group, Run
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

CASES_SHOWN = 3


def markdown(groups: Sequence[Group]) -> str:
    """The report as Markdown."""
    runs = [run for group in groups for run in group.runs]
    lines = ["# Words to masks", "", "Percent; – is not defined.", "", *markdown_table(headline_table(runs))]
    for group in groups:
        lines += ["", f"## {escape_markdown(group.title)}"]
        if group.runs[0].entry["benchmark"].startswith("scenes"):
            lines += ["", f"**{SCENES_NOTE[0].upper() + SCENES_NOTE[1:]}.**"]
        for run in group.runs:
            lines += _run(run)
        lines += _shared(group)
    return "\n".join(lines) + "\n"


def _run(run: Run) -> list[str]:
    header, rows = overview_rows(run.entry)
    lines = ["", f"### {escape_markdown(run.label)}", ""]
    lines += [f"- {key}: {escape_markdown(value)}" for key, value in facts(run).items()]
    lines += ["", *markdown_table(Table(header, rows)), "", *markdown_table(score_table(run.entry)), ""]
    lines += [f"- {escape_markdown(line)}" for line in notes(run.entry)]
    if run.missing:
        lines += ["", f"No single answers: {escape_markdown(run.missing)}"]
    return lines


def _shared(group: Group) -> list[str]:
    """What stands beside each other for all runs of one benchmark."""
    lines: list[str] = []
    if intervals := interval_table(group.runs):
        lines += ["", "### 95 % intervals", "", *markdown_table(intervals)]
    for kind, table in published_tables(group.runs):
        lines += ["", f"### Published: {kind.value}", "", *markdown_table(table)]
    answered = group.answered
    for run in answered:
        if found := iou_histograms(run.cases):
            lines += ["", f"### IoU of {escape_markdown(run.label)}", ""]
            lines += markdown_table(histogram_table(found))
    curves = {run.label: curve for run in answered if (curve := rejection_curve(run.cases))}
    if curves:
        lines += ["", "### Rejection by p_absent", "", *markdown_table(rejection_table(curves))]
    scores = {run.label: r for run in answered if (r := reliability(run.cases))}
    if scores:
        lines += ["", "### Reliability of the predicted IoU", "", *markdown_table(reliability_table(scores))]
    for run in answered:
        lines += ["", f"### Cases of {escape_markdown(run.label)}", "", *markdown_table(_cases(run))]
    return lines


def _cases(run: Run) -> Table:
    rows = []
    for granularity, groups in choose_cases(run.cases, CASES_SHOWN).items():
        for name, cases in groups.items():
            rows += [
                [NAMES[granularity], name, c.expression.text, c.name, f"{c.iou:.2f}" if c.targeted else "–"]
                for c in cases
            ]
    return Table(("asked for", "case", "words", "id", "IoU"), rows, 4)


def markdown_table(table: Table) -> list[str]:
    """Lines of a pipe table; columns of words to the left, numbers to the right."""
    marks = [":---" if j < table.text_columns else "---:" for j in range(len(table.header))]
    return [
        f"| {' | '.join(map(escape_markdown, row))} |" if row is not marks else f"|{'|'.join(marks)}|"
        for row in (table.header, marks, *table.rows)
    ]


def escape_markdown(text: str) -> str:
    """Text that stays text in a Markdown page and in one cell of a table."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|<>`*_[]":
        flat = flat.replace(mark, "&lt;" if mark == "<" else "&gt;" if mark == ">" else "\\" + mark)
    return flat
