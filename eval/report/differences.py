"""The page of `python -m eval compare`: questions that two models answer differently, as large pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.report.gallery import Figure, Photos, Row, figure_of, is_small
from eval.report.runs import Case
from eval.report.tables import Table
from eval.report.write import TEMPLATES, check_replaceable, template
from eval.score import SCENES_NOTE
from uniresxx.errors import InputError
from uniresxx.files import write_atomic

MOST = 8  # pictures of each kind of difference
LEAST = 0.1  # of IoU, to be called a difference
MARKS = {"index.html": b"<h1>Where two models differ</h1>"}

Both = tuple[Case, Case]  # the two answers to one question
KINDS: dict[str, tuple[Callable[[Case, Case], bool], str]] = {
    "B finds it better": (lambda a, b: a.targeted and b.iou - a.iou > LEAST, "targets better by B"),
    "A finds it better": (lambda a, b: a.targeted and a.iou - b.iou > LEAST, "targets better by A"),
    "Nothing is there, and only B says so": (
        lambda a, b: not a.targeted and b.rejected and not a.rejected,
        "absent ones rejected by B alone",
    ),
    "Nothing is there, and only A says so": (
        lambda a, b: not a.targeted and a.rejected and not b.rejected,
        "absent ones rejected by A alone",
    ),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on one benchmark: all answers as they were judged, and the table of scores."""

    title: str
    a: Sequence[Case]
    b: Sequence[Case]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def write_page(out: Path, comparisons: Sequence[Comparison], a: str, b: str) -> Path:
    """Write OUT/index.html, which loads nothing; returns its path.

    Args:
        out: folder of the page.
        comparisons: one for each benchmark.
        a: what the first model is called.
        b: what the second one is called.

    Raises:
        InputError: OUT/index.html is a page of another origin.
    """
    check_replaceable(out, "compare", MARKS)
    photos = Photos()
    sections = [_section(comparison, photos) for comparison in comparisons]
    text = template("compare.html").render(
        a=a,
        b=b,
        sections=sections,
        photos=photos,
        scenes_note=SCENES_NOTE,
        is_small=is_small,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
    )
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    write_atomic(page, text.encode())
    return page


def _section(comparison: Comparison, photos: Photos) -> dict[str, object]:
    """What the template shows of one benchmark."""
    others = {case.name: case for case in comparison.b}
    pairs = [(case, others[case.name]) for case in comparison.a if case.name in others]
    counts, rows, problem = [], [], ""
    for name, (belongs, words) in KINDS.items():
        found = [pair for pair in pairs if belongs(*pair)]
        counts.append(f"{len(found):,} {words}")
        try:
            figures = [_figure(pair, comparison.title, photos) for pair in _largest(found)]
        except InputError as error:  # a photo was moved or deleted: the numbers are still worth a page
            problem, figures = str(error), []
        if figures:
            shown = f"{name}: {len(figures)} of {len(found):,}"
            rows.append(Row("", shown, figures, narrow=False))
    return {
        "title": comparison.title,
        "summary": f"Of {len(pairs):,} questions: {', '.join(counts)} (better: an IoU larger by more than {LEAST}).",
        "problem": problem,
        "rows": rows,
        "table": Table(comparison.header, comparison.rows),
        "notes": comparison.notes,
    }


def _largest(pairs: Sequence[Both]) -> list[Both]:
    """The pairs with the largest difference of IoU, of different photos where there are enough."""
    ordered = sorted(pairs, key=lambda pair: (-abs(pair[0].iou - pair[1].iou), pair[0].name))
    seen: set[str] = set()
    first: list[Both] = []
    again: list[Both] = []
    for pair in ordered:
        image = pair[0].record.image_id
        (again if image in seen else first).append(pair)
        seen.add(image)
    return (first + again)[:MOST]


def _figure(pair: Both, title: str, photos: Photos) -> Figure:
    a, b = pair
    figure = figure_of([("A", a), ("B", b)], photos.name(title, a.record))
    return replace(figure, columns=len(figure.panels))
