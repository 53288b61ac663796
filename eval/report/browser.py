"""The per-expression browser: its data as JSON inside the page, and the empty form that `browser.js` fills.

Photos are embedded once each, at most SIDES[0] pixels a side; where all of them together would pass their
share of PHOTO_BYTES the next smaller side is tried, and after the last the photos are left out and masks are
drawn on grey. Masks are run-length codes at the size of the small photo, equal ones once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.report.cases import DECISIONS, Case
from eval.report.pictures import thumbnail_uri
from eval.report.runs import Group, Run
from eval.report.tables import NAMES
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import RLE, Granularity, ImageRecord

SIDES = (256, 160)  # longest side of an embedded photo, pixels
PHOTO_BYTES = 24_000_000  # of all photos of one page; its numbers and masks come on top
SCRIPT = Path(__file__).with_name("browser.js")
GRANULARITIES = tuple(g.value for g in Granularity)


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """The photos of one browser: a data URI each or none at all, and the longest side they have."""

    uris: Mapping[str, str]
    side: int
    note: str


def thumbnails(records: Sequence[ImageRecord], budget: int) -> Thumbnails:
    """Photos of the records as data URIs by image id, within `budget` bytes."""
    for side in SIDES:
        uris, total, lost = dict[str, str](), 0, 0
        for record in records:
            try:
                uris[record.image_id] = uri = thumbnail_uri(photo_of(record), side)
            except InputError:
                lost += 1
                continue
            total += len(uri)
            if total > budget:
                break
        else:
            note = f"Photos are reduced to {side} pixels."
            if lost:
                note += f" {lost} of {len(records)} could not be read: their masks are drawn on grey."
            return Thumbnails(uris, side, note)
    note = (
        f"Photos are left out: {len(records):,} of them would not fit into {budget / 1e6:.0f} MB. "
        "Masks are drawn on grey."
    )
    return Thumbnails({}, SIDES[0], note)


class _Masks:
    """Masks of the page, each once, at the size of the small photo."""

    def __init__(self, side: int) -> None:
        self.codes: list[str] = []
        self._side = side
        self._known: dict[tuple[str, int, int], int] = {}

    def index(self, rle: RLE | None) -> int:
        """Place of a mask in `codes`; -1 where there is none or it is empty."""
        if rle is None or not masks.area(rle):
            return -1
        key = (rle["counts"], rle["size"][0], rle["size"][1])
        if key not in self._known:
            self._known[key] = len(self.codes)
            self.codes.append(_reduced(rle, self._side)["counts"])
        return self._known[key]


def small_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with a longest side of at most `side`."""
    longest = max(height, width)
    if longest <= side:
        return height, width
    return max(1, round(height * side / longest)), max(1, round(width * side / longest))


def _reduced(rle: RLE, side: int) -> RLE:
    """The mask at small size: the pixel in the middle of each; all it touches where that would leave
    nothing."""
    height, width = rle["size"]
    small = small_size(height, width, side)
    if small == (height, width):
        return rle
    mask = masks.decode(rle)
    rows = (2 * np.arange(small[0]) + 1) * height // (2 * small[0])
    columns = (2 * np.arange(small[1]) + 1) * width // (2 * small[1])
    sampled = mask[rows[:, None], columns]
    if not sampled.any():
        grey = Image.fromarray(mask.view(np.uint8) * 255)
        sampled = np.asarray(grey.resize((small[1], small[0]), Image.Resampling.BOX)) > 0
    return masks.encode(sampled)


def payload(group: Group, photos: Thumbnails) -> dict[str, Any]:
    """The browser's data: one column per property, one entry per expression of any run."""
    runs = group.answered
    first: dict[str, Case] = {}
    for run in runs:
        for case in run.cases:
            first.setdefault(case.name, case)
    cases = list(first.values())
    records = {case.record.image_id: case.record for case in cases}
    places = {name: k for k, name in enumerate(records)}
    found = _Masks(photos.side)
    return {
        "runs": [_run_columns(run, list(first), found) for run in runs],
        "granularities": [NAMES[g] for g in GRANULARITIES],
        "decisions": list(DECISIONS),
        "images": [
            [*small_size(r.height, r.width, photos.side), photos.uris.get(r.image_id)]
            for r in records.values()
        ],
        "id": list(first),
        "text": [c.expression.text for c in cases],
        "image": [places[c.record.image_id] for c in cases],
        "granularity": [GRANULARITIES.index(c.expression.granularity.value) for c in cases],
        "level": [c.expression.level for c in cases],
        "truth": [found.index(c.expression.rle) for c in cases],
        "masks": found.codes,
    }


def _run_columns(run: Run, names: Sequence[str], found: _Masks) -> dict[str, Any]:
    cases = {case.name: case for case in run.cases}

    def column(value: Callable[[Case], Any]) -> list[Any]:
        return [value(cases[name]) if name in cases else None for name in names]

    return {
        "label": run.label,
        "decision": column(lambda c: DECISIONS.index(c.decision)),
        "iou": column(lambda c: round(c.iou, 4)),
        "score": column(lambda c: None if c.prediction.score is None else round(c.prediction.score, 4)),
        "absent": column(
            lambda c: None if c.prediction.p_absent is None else round(c.prediction.p_absent, 4)
        ),
        "mask": column(lambda c: found.index(None if c.rejected else c.prediction.mask)),
    }


def json_block(name: str, value: Any) -> str:
    """A JSON data block that no text in it can end: `<` before `/`, `!`, `s` is written as an escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = re.sub(r"<(?=[/!sS])", r"\\u003c", text)
    return f'<script type="application/json" id="{name}">{safe}</script>'


def browser(group: Group, number: int, budget: int) -> str:
    """The browser of one benchmark as HTML; empty text where no single answer is known."""
    runs = group.answered
    if not runs:
        return ""
    records = {case.record.image_id: case.record for run in runs for case in run.cases}
    photos = thumbnails(list(records.values()), budget)
    data = payload(group, photos)
    key = f"b{number}"
    options = "".join(f"<option value={k}>{escape(run.label)}</option>" for k, run in enumerate(runs))
    granularities = "".join(
        f"<label><input type=checkbox name=granularity value={k} checked> {escape(NAMES[g])}</label>"
        for k, g in enumerate(GRANULARITIES)
    )
    decisions = "".join(f"<option value={k}>{escape(name)}</option>" for k, name in enumerate(DECISIONS))
    orders = "".join(f"<option value={value}>{label}</option>" for value, label in ORDERS)
    return (
        f'<div class=browser-part><h3 id="{key}-h">Every expression</h3><p class=small>{escape(photos.note)}</p>'
        f'<div class=browser data-source="{key}"><noscript><p class=warn>The browser needs its script; '
        "everything else on this page does not.</p></noscript>"
        f'<form class=filters aria-label="Filter expressions">'
        f"<label class=grow>Words or id<input type=search name=words autocomplete=off "
        f'placeholder="red car left"></label>'
        f"<label{' hidden' if len(runs) == 1 else ''}>Run<select name=run>{options}</select></label>"
        f"<label>Outcome<select name=decision><option value=''>all</option>{decisions}</select></label>"
        f"<label>IoU from<input type=number name=low min=0 max=1 step=0.05 value=0></label>"
        f"<label>to<input type=number name=high min=0 max=1 step=0.05 value=1></label>"
        f"<label>Order<select name=order>{orders}</select></label>"
        f"<fieldset><legend>Asked for</legend>{granularities}</fieldset>"
        f"<button type=reset>Show all</button></form>"
        f"<p class=found role=status></p>"
        f'<div class=split><div class=list role=listbox tabindex=0 aria-labelledby="{key}-h"></div>'
        '<div class=detail role=region aria-label="Chosen expression"></div></div></div></div>'
        + json_block(key, data)
    )


ORDERS = (
    ("file", "as in the file"),
    ("worst", "IoU, lowest first"),
    ("best", "IoU, highest first"),
    ("surest", "predicted IoU, highest first"),
    ("absent", "p(absent), highest first"),
    ("words", "words, A to Z"),
    ("apart", "runs furthest apart"),
)
