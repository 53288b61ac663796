"""`python -m eval report`: the scores and answers of one or more folders as a page, as Markdown and as CSV.

index.html holds everything and loads nothing; report.md has the tables of the page; summary.csv has one row
per run, benchmark and protocol. `templates/` holds the markup, the style and the script.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from eval.report import charts, curves, tables
from eval.report.browser import PHOTO_BYTES, browser_data
from eval.report.gallery import Photos, choose_cases, gallery, is_small
from eval.report.published import not_compared, published_tables
from eval.report.runs import Group, Run, group_runs, read_runs
from eval.score import SCENES_NOTE, notes, overview_rows
from uniresxx.errors import InputError
from uniresxx.files import write_atomic

TEMPLATES = Path(__file__).with_name("templates")
# What every report of ours holds, of this and of former versions: another file of the same name is never replaced.
MARKS = {
    "index.html": b"<h1>Words to masks</h1>",
    "report.md": b"# Words to masks",
    "summary.csv": b"run,benchmark,split,protocol,",
}


def report(folders: Sequence[Path], data: Path | None = None, out: Path | None = None) -> Path:
    """Write {index.html, report.md, summary.csv} about all folders.

    Args:
        folders: run or evaluation folders.
        data: root of the data, where it is not where it was scored.
        out: where the three files go; None: FIRST/report.

    Returns:
        Path of index.html.

    Raises:
        InputError: a folder holds no scores, or `out` holds a file that no report wrote.
    """
    folders = list(dict.fromkeys(folders))
    out = out or folders[0] / "report"
    check_replaceable(out, "report", MARKS)
    groups = group_runs(read_runs(folders, data))
    contents = {
        "summary.csv": tables.summary_csv([run for group in groups for run in group.runs]),
        "report.md": template("report.md").render(groups=groups),
        "index.html": page(groups, [folder for folder in folders if (folder / "curve.png").is_file()]),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        write_atomic(out / name, text.encode())
    return out / "index.html"


def check_replaceable(out: Path, command: str, marks: Mapping[str, bytes]) -> None:
    """Refuse to replace what `python -m eval COMMAND` did not write.

    Args:
        out: folder of its files.
        command: what is going to write there.
        marks: bytes that each of its files holds, by name.

    Raises:
        InputError: `out` is a file, or holds a file of that name without its mark.
    """
    if out.exists() and not out.is_dir():
        raise InputError(
            f"{out} is a file and the {command} needs a folder of this name: move it away or give another --out"
        )
    for name, mark in marks.items():
        path = out / name
        if path.is_dir() or (path.exists() and mark not in path.read_bytes()):
            raise InputError(
                f"{path} was not written by `python -m eval {command}`: move it away or give another --out"
            )


def page(groups: Sequence[Group], with_curve: Sequence[Path] = ()) -> str:
    """The page as HTML: one file that loads nothing; only its own script may run.

    Args:
        groups: what was scored.
        with_curve: run folders whose curve.png is shown.
    """
    photos, answered = Photos(), [group for group in groups if group.answered]
    script = (TEMPLATES / "browser.js").read_text(encoding="utf-8") if answered else ""
    sections = []
    for group in groups:
        cases, problem = [], ""
        try:
            cases = gallery(group, photos)
        except InputError as error:  # a photo was moved or deleted: the numbers are still worth a page
            problem = str(error)
        data = browser_data(group, PHOTO_BYTES // len(answered)) if group.answered else None
        sections.append({"group": group, "cases": cases, "problem": problem, "browser": data})
    curve_uris = [
        (folder.name or str(folder), base64.b64encode((folder / "curve.png").read_bytes()).decode())
        for folder in with_curve
    ]
    return template("page.html").render(
        groups=groups,
        sections=sections,
        photos=photos,
        curve_uris=curve_uris,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
    )


def template(name: str) -> Template:
    """A file of `templates/` with the functions that it calls; every value in HTML is escaped."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.policies["json.dumps_kwargs"] = dict(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    found.filters.update(md=escape_markdown, px=lambda value: f"{value:.1f}")
    found.globals.update(
        tables=tables,
        charts=charts,
        curves=curves,
        choose_cases=choose_cases,
        histogram_charts=histogram_charts,
        is_small=is_small,
        notes=notes,
        overview=lambda entry: tables.Table(*overview_rows(entry)),
        published_tables=published_tables,
        not_compared=not_compared,
        rejection=rejection,
        reliability=reliability,
        scenes_note=SCENES_NOTE,
    )
    return found.get_template(name)


def histogram_charts(
    histograms: Mapping[str, curves.Histogram], label: str
) -> list[tuple[str, int, charts.Chart]]:
    """Name, number of expressions and bar chart of each histogram."""
    bins = ["rej.", *(f"{k / curves.BINS:.1f}" for k in range(curves.BINS))]
    names = {key: tables.NAMES[key] for key in histograms}
    return [
        (
            names[key],
            h.total,
            charts.bar_chart(f"{names[key]}, {label}", (h.rejected, *h.counts), bins, "IoU"),
        )
        for key, h in histograms.items()
    ]


def rejection(runs: Sequence[Run]) -> tuple[charts.Chart, tables.Table, int] | None:
    """Chart, table and the number of answers left out; None where no run has a rejection curve."""
    found = {run.label: curve for run in runs if (curve := curves.rejection_curve(run.cases))}
    if not found:
        return None
    chosen = {run.label: point for run in runs if (point := curves.decisions(run.cases))}
    series = [
        charts.Line(
            f"{label}, area {100 * curve.area:.1f}",
            list(zip(curve.t_acc.tolist(), curve.n_acc.tolist(), strict=True)),
            [(chosen[label][1], chosen[label][0])] if label in chosen else [],
        )
        for label, curve in found.items()
    ]
    drawing = charts.line_chart("Rejection", series, "T-acc", "N-acc", ((0, 1), (1, 0)))
    return drawing, tables.rejection_table(found), sum(curve.unknown for curve in found.values())


def reliability(runs: Sequence[Run]) -> tuple[charts.Chart, tables.Table, int] | None:
    """Chart, table and the number of answers left out; None where no run has a predicted IoU."""
    found = {run.label: r for run in runs if (r := curves.reliability(run.cases))}
    if not found:
        return None
    series = [
        charts.Line(
            f"{label}, error {100 * r.error:.1f}",
            [(p, v) for p, v in zip(r.predicted, r.real, strict=True) if p is not None and v is not None],
            dots=True,
        )
        for label, r in found.items()
    ]
    drawing = charts.line_chart("Calibration", series, "predicted IoU", "real IoU", ((0, 0), (1, 1)))
    return drawing, tables.reliability_table(found), sum(r.unknown for r in found.values())


def escape_markdown(text: str) -> str:
    """Text that stays text in a Markdown page and in one cell of a table."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|`*_[]":
        flat = flat.replace(mark, "\\" + mark)
    return flat.replace("<", "&lt;").replace(">", "&gt;")
