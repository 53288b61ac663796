"""Good and bad cases as pictures: which cases are shown, and their panels with the answers of all runs.

A photo is embedded once, as a style; a mask is a small transparent picture over it. Nothing here needs a script.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

from eval.report.runs import Case, Group, Run
from uniresxx.data.store.photos import photo_of
from uniresxx.imaging import masks
from uniresxx.imaging.insets import FRAME, draw_inset, zoomed
from uniresxx.imaging.lettering import PAPER, Colour
from uniresxx.imaging.marking import DARK, PALETTE, VEIL, VEIL_SHARE, Lines, grown, outline, scaled_photo
from uniresxx.imaging.panel import Mark, insets_of
from uniresxx.imaging.shapes import Shape, shape_of
from uniresxx.types import RLE, Expression, Granularity, ImageRecord

LONGEST = 480  # pixels of a shown photo's longest side
SMALL = 160  # pixels; photos up to here are embedded unchanged and shown with sharp pixels
TRUTH, ANSWER = PALETTE[3], PALETTE[0]  # also in templates/browser.js
MAX_DIFFERING = 6  # cases on which the runs differ the most
CASES = ("best", "median", "worst", "false reject", "false accept", "correct reject")


@dataclass(frozen=True, slots=True)
class Panel:
    """The photo with one mask over it, or a note where there is no mask to draw."""

    label: str
    layer: str = ""  # data URI of the mask
    note: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """One expression: its photo, truth and the answers."""

    expression: Expression
    photo: str  # style class
    panels: Sequence[Panel]
    columns: int
    line: str


@dataclass(frozen=True, slots=True)
class Row:
    """Figures of one kind of case."""

    granularity: str  # a value of Granularity, or "" where runs are compared
    name: str
    figures: Sequence[Figure]
    narrow: bool


@dataclass(slots=True)
class Photos:
    """Photos of the page by style class, each embedded once however many panels show it."""

    styles: dict[str, tuple[ImageRecord, str]] = field(default_factory=dict)  # class -> record, data URI
    _names: dict[tuple[str, str], str] = field(default_factory=dict)

    def name(self, benchmark: str, record: ImageRecord) -> str:
        """The style class that shows a record's photo; InputError where the photo cannot be read."""
        key = (benchmark, record.image_id)
        if key not in self._names:
            uri = photo_uri(photo_of(record))
            self._names[key] = f"i{len(self._names)}"
            self.styles[self._names[key]] = (record, uri)
        return self._names[key]


def gallery(group: Group, photos: Photos) -> list[Row]:
    """Cases of the first run with the answers of the others beside them, then those on which the runs differ.

    Raises:
        InputError: a photo cannot be read.
    """
    runs = group.answered
    if not runs:
        return []
    answers = [{case.name: case for case in run.cases} for run in runs]

    def row(granularity: str, name: str, cases: Sequence[Case]) -> Row:
        figures = []
        for case in cases:
            shown = [(run.label, given[case.name]) for run, given in zip(runs, answers, strict=True)
                     if case.name in given]  # fmt: skip
            figures.append(figure_of(shown, photos.name(group.title, case.record)))
        narrow = all(is_small(case.record) for case in cases) and all(len(f.panels) == 3 for f in figures)
        return Row(granularity, name, figures, narrow)

    chosen = choose_cases(runs[0].cases, 4 if len(runs) > 1 else 3)
    rows = [row(g, name, cases) for g, named in chosen.items() for name, cases in named.items()]
    if differing := _most_differing(runs, answers):
        rows.append(row("", "largest difference of IoU", differing))
    return rows


def choose_cases(cases: Sequence[Case], per_name: int) -> dict[str, dict[str, list[Case]]]:
    """Cases by granularity and name (one of CASES), of different photos where there are enough.

    The numbers alone decide: the IoU of answers, and of other outcomes those the model was surest about.
    """
    found = {}
    for granularity in Granularity:
        pool = [case for case in cases if case.expression.granularity == granularity]
        if pool:
            found[granularity.value] = _choose(pool, per_name)
    return found


def _choose(pool: Sequence[Case], count: int) -> dict[str, list[Case]]:
    answered = sorted((c for c in pool if c.outcome == "answered"), key=lambda c: (-c.iou, c.name))
    middle = len(answered) // 2
    from_middle = sorted(range(len(answered)), key=lambda k: (abs(k - middle), k))
    ordered = {
        "best": answered,
        "worst": answered[::-1],
        "median": [answered[k] for k in from_middle],
    } | {outcome: _surest(pool, outcome) for outcome in CASES[3:]}
    taken: set[str] = set()
    found = {name: _distinct(candidates, count, taken) for name, candidates in ordered.items()}
    return {name: found[name] for name in CASES if found[name]}


def _surest(pool: Sequence[Case], outcome: str) -> list[Case]:
    """Cases of one outcome, those the model was surest about first."""
    sign = 1 if outcome == "false accept" else -1

    def doubt(case: Case) -> float:
        p_absent = case.prediction.p_absent
        return sign * (0.5 if p_absent is None else p_absent)

    return sorted((c for c in pool if c.outcome == outcome), key=lambda c: (doubt(c), c.name))


def _distinct(ordered: Sequence[Case], count: int, taken: set[str]) -> list[Case]:
    """The first `count` whose names are not in `taken`, of different photos where possible; adds their names."""
    free = [c for c in ordered if c.name not in taken]
    of_new_photos = {c.record.image_id: c for c in reversed(free)}  # the first case of each photo
    first = [c for c in free if of_new_photos[c.record.image_id] is c]
    chosen = (first + [c for c in free if of_new_photos[c.record.image_id] is not c])[:count]
    taken.update(c.name for c in chosen)
    return chosen


def _most_differing(runs: Sequence[Run], answers: Sequence[Mapping[str, Case]]) -> list[Case]:
    """Cases of the first run by the spread of their IoU over the runs, at most one per photo."""

    def spread(case: Case) -> float:
        ious = [given[case.name].iou for given in answers if case.name in given]
        return max(ious) - min(ious)

    found: dict[str, Case] = {}
    for case in sorted(runs[0].cases, key=lambda c: (-spread(c), c.name)):
        if len(found) == MAX_DIFFERING or spread(case) == 0:
            break
        found.setdefault(case.record.image_id, case)
    return list(found.values())


def figure_of(shown: Sequence[tuple[str, Case]], photo: str) -> Figure:
    """One expression with the answer of each run (its label, its case)."""
    first, single = shown[0][1], len(shown) == 1
    panels = [Panel("picture"), _panel("truth", first.record, first.expression.rle, TRUTH, "no target")]
    for label, case in shown:
        mask, note = (None, "rejected") if case.rejected else (case.prediction.rle, "empty mask")
        caption = "" if single else f"{label}: {_numbers(case)}"
        panels.append(_panel("answer", first.record, mask, ANSWER, note, caption))
    level = first.expression.level
    parts = ([_numbers(first)] if single else []) + ([] if level is None else [f"level {level}"])
    columns = 2 if len(panels) > 3 and not is_small(first.record) else min(4, len(panels))
    return Figure(first.expression, photo, panels, columns, " · ".join(parts))


def _numbers(case: Case) -> str:
    prediction = case.prediction
    parts = [f"IoU {case.iou:.2f}" if case.targeted else "no target"]
    if prediction.score is not None and not case.rejected:
        parts.append(f"predicted IoU {prediction.score:.2f}")
    if prediction.p_absent is not None:
        parts.append(f"p(absent) {prediction.p_absent:.2f}")
    return " · ".join(parts)


def _panel(
    label: str, record: ImageRecord, mask: RLE | None, colour: Colour, note: str, caption: str = ""
) -> Panel:
    shape = None if mask is None else shape_of(masks.decode(mask))
    if shape is None:
        return Panel(label, note=note, caption=caption)
    photo = photo_of(record) if shape.window is not None else None
    return Panel(label, layer=mask_uri(shape, colour, photo), caption=caption)


# ----------------------------------------------------------------------------------------------- pictures


def is_small(record: ImageRecord) -> bool:
    """Whether the record's photo is embedded unchanged."""
    return max(record.height, record.width) <= SMALL


def photo_uri(photo: np.ndarray, longest: int = LONGEST, *, thumbnail: bool = False) -> str:
    """Data URI of a photo (uint8 (y, x, 3)): an exact PNG where it is small, else a JPEG of at most `longest`.

    A thumbnail is smaller and faster to make, and less sharp.
    """
    picture = Image.fromarray(np.ascontiguousarray(photo))
    if max(picture.size) <= SMALL:
        return _uri(picture, "PNG", optimize=True)
    if max(picture.size) > longest:
        resample = Image.Resampling.BOX if thumbnail else Image.Resampling.LANCZOS
        picture = picture.resize(reduced_size(*picture.size, longest), resample, reducing_gap=2.0)
    return _uri(picture, "JPEG", quality=70 if thumbnail else 80)


def reduced_size(first: int, second: int, longest: int) -> tuple[int, int]:
    """The two sides of a picture, reduced in proportion to at most `longest`."""
    scale = min(1.0, longest / max(first, second))
    return max(1, round(first * scale)), max(1, round(second * scale))


def shown_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which masks are drawn: small photos enlarged by a whole factor, large ones reduced."""
    factor = max(1, LONGEST // max(height, width))
    return reduced_size(height * factor, width * factor, LONGEST)


def mask_uri(shape: Shape, colour: Colour, photo: np.ndarray | None = None) -> str:
    """Data URI of a mask as a layer: clear inside, a double outline around, a dark veil over the rest.

    With its photo, uint8 (y, x, 3), a small mask is also shown zoomed.
    """
    size = shown_size(*(shape.size if photo is None else photo.shape[:2]))
    inside = shape.at(size)
    bright, dark = outline(inside, Lines.at(size))
    clear = 3
    layer = Image.fromarray(np.select([inside, bright, dark], [clear, 1, 2], 0).astype(np.uint8))
    layer.putpalette([*VEIL, *colour, *DARK, *PAPER])
    opaque = bytes((round(255 * VEIL_SHARE), 255, 255, 0))
    if photo is None:
        return _uri(layer, "PNG", optimize=True, transparency=opaque)
    layer.info["transparency"] = opaque
    return _uri(_with_zoom(layer.convert("RGBA"), shape, colour, photo, inside), "PNG", optimize=True)


def _with_zoom(
    layer: Image.Image, shape: Shape, colour: Colour, photo: np.ndarray, inside: np.ndarray
) -> Image.Image:
    """The layer with the surroundings of a small mask enlarged in a corner, where there is room."""
    size = inside.shape
    canvas = scaled_photo(photo, size, sharp=False)
    for inset in insets_of([Mark(shape, colour)], photo.shape[:2], size, canvas, inside).values():
        lines = Lines.at(size)
        content = zoomed(photo, inset.window, inset.place.width - 2 * FRAME, colour, lines)
        draw_inset(layer, inset, content, grown(inside, lines.reach))
    return layer


def _uri(picture: Image.Image, form: str, **options: object) -> str:
    stream = BytesIO()
    picture.save(stream, format=form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
