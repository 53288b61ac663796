"""Good and bad cases as pictures, several runs side by side; no script needed."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from eval.report.cases import PER_GROUP, Case, choose_cases
from eval.report.pictures import ANSWER, SMALL, TRUTH, mask_uri, photo_uri
from eval.report.runs import Group, Run
from eval.report.tables import NAMES
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import RLE

MOST_APART = 6  # cases on which the runs differ the most
Column = tuple[str, Case]  # label of a run and its answer


class Photos:
    """Photos of the page: each is embedded once, as a style, however many panels show it."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._styles: list[str] = []

    def name(self, benchmark: str, case: Case) -> str:
        """The style class that shows the photo of a case; InputError where the photo cannot be read."""
        key = (benchmark, case.record.image_id)
        if key not in self._names:
            uri = photo_uri(photo_of(case.record))  # first: may fail, and then there is no such style
            self._names[key] = name = f"i{len(self._names)}"
            ratio = f"{case.record.width}/{case.record.height}"
            sharp = ";image-rendering:pixelated" if _is_small(case) else ""
            self._styles.append(f".{name}{{aspect-ratio:{ratio};background-image:url({uri}){sharp}}}")
        return self._names[key]

    def styles(self) -> str:
        """All photo styles."""
        return "".join(self._styles)


def gallery(group: Group, photos: Photos) -> str:
    """Cases of the first run with the answers of the others beside; a reason where a photo cannot be
    read."""
    runs = group.answered
    if not runs:
        return ""
    try:
        return _galleries(group.title, runs, photos)
    except InputError as error:  # a photo was moved or deleted: the numbers are still worth a page
        return f"<h3>Cases</h3><p class=warn>No pictures: {escape(str(error))}</p>"


def _galleries(title: str, runs: list[Run], photos: Photos) -> str:
    answers = [{case.name: case for case in run.cases} for run in runs]

    def columns(case: Case) -> list[Column]:
        return [(run.label, given[case.name]) for run, given in zip(runs, answers, strict=True)
                if case.name in given]  # fmt: skip

    chosen = f" Chosen by the answers of {escape(runs[0].label)}." if len(runs) > 1 else ""
    parts = [
        "<h3>Good and bad cases</h3><p class=small>Picture, <b class=truth>truth</b>, "
        "<b class=answer>answer</b>. Chosen by their numbers alone; "
        f"of decisions, those the model was surest about.{chosen}</p>"
    ]
    for granularity, groups in choose_cases(runs[0].cases, 4 if len(runs) > 1 else PER_GROUP).items():
        parts.append(f"<h4>{NAMES[granularity]}</h4>")
        for name, cases in groups.items():
            good = "good" if name in ("best", "rightly rejected") else "bad" if name != "median" else "mid"
            parts.append(_row(name, good, cases, columns, title, photos))
    if len(runs) > 1 and (apart := _furthest_apart(runs, answers)):
        parts.append("<h4>Where the runs differ the most</h4>")
        parts.append(_row("largest difference of IoU", "mid", apart, columns, title, photos))
    return "".join(parts)


def _furthest_apart(runs: list[Run], answers: list[dict[str, Case]]) -> list[Case]:
    """Cases by the spread of their IoU over the runs, at most one per picture."""

    def spread(case: Case) -> float:
        ious = [given[case.name].iou for given in answers if case.name in given]
        return max(ious) - min(ious)

    found: dict[str, Case] = {}
    for case in sorted(runs[0].cases, key=lambda c: (-spread(c), c.name)):
        if len(found) == MOST_APART or spread(case) == 0:
            break
        found.setdefault(case.record.image_id, case)
    return list(found.values())


def _row(
    name: str,
    kind: str,
    cases: list[Case],
    columns: Callable[[Case], list[Column]],
    title: str,
    photos: Photos,
) -> str:
    shown = [columns(case) for case in cases]
    figures = "".join(_figure(c, photos.name(title, case)) for c, case in zip(shown, cases, strict=True))
    narrow = all(map(_is_small, cases)) and max(map(len, shown)) == 1
    cards = "cards" if narrow else "cards large"
    return f"<h5 class={kind}>{escape(name)}</h5><div class='{cards}'>{figures}</div>"


def _is_small(case: Case) -> bool:
    return max(case.record.height, case.record.width) <= SMALL


def _figure(columns: list[Column], photo: str) -> str:
    expression = columns[0][1].expression
    panels = [
        f'<div><div class="p {photo}" role=img aria-label="picture"></div></div>',
        f"<div>{_panel(photo, 'truth', expression.rle, TRUTH, 'nothing there')}</div>",
    ]
    for label, case in columns:
        said = None if case.rejected else case.prediction.mask
        otherwise = "“not there”" if case.rejected else "empty mask"
        below = f"<small>{escape(label)}: {_facts(case)}</small>" if len(columns) > 1 else ""
        panels.append(f"<div>{_panel(photo, 'answer', said, ANSWER, otherwise)}{below}</div>")
    line = _facts(columns[0][1]) if len(columns) == 1 else ""
    if expression.level is not None:
        line += f"{' · ' if line else ''}level {expression.level}"
    wide = 2 if len(panels) > 3 and not _is_small(columns[0][1]) else min(4, len(panels))
    return (
        f'<figure><div class=panels style="--n:{wide}">{"".join(panels)}</div>'
        f"<figcaption><q>{escape(expression.text)}</q><span>{line}</span>"
        f"<small>{escape(expression.expression_id)}</small></figcaption></figure>"
    )


def _facts(case: Case) -> str:
    prediction = case.prediction
    facts = [f"IoU {case.iou:.2f}" if case.targeted else "no target"]
    if prediction.score is not None and not case.rejected:
        facts.append(f"predicted IoU {prediction.score:.2f}")
    if prediction.p_absent is not None:
        facts.append(f"p(absent) {prediction.p_absent:.2f}")
    return " · ".join(facts)


def _panel(photo: str, label: str, mask: RLE | None, colour: tuple[int, int, int], otherwise: str) -> str:
    """One panel: the photo with a mask over it, or greyed with a word where there is none."""
    if mask is None or not masks.area(mask):
        return f'<div class="p off {photo}" role=img aria-label="{label}"><i>{otherwise}</i></div>'
    uri = mask_uri(masks.decode(mask), colour)
    return f'<div class="p {photo}" role=img aria-label="{label}"><img alt="" src="{uri}"></div>'
