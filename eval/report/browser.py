"""Data of the browser of single expressions, for `templates/browser.js`: photos, masks and one column per property.

Each photo is embedded once, its longest side at most SIDES[0] pixels. Where the photos together exceed the page's
budget the next smaller side is tried; after the last they are left out and masks are drawn on grey. Masks are
run-length codes at the size of the reduced photo, equal masks once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from eval.report.gallery import photo_uri, reduced_size
from eval.report.runs import OUTCOMES, Case, Group, Run
from eval.report.tables import NAMES
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import RLE, Granularity, ImageRecord

SIDES = (256, 160)  # longest side of an embedded photo, pixels
PHOTO_BYTES = 24_000_000  # of all photos of one page, without its numbers and masks
GRANULARITIES = tuple(g.value for g in Granularity)


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """The photos of one browser: data URIs by image id, the size limit of each, and what was left out."""

    uris: Mapping[str, str]
    side: int
    note: str


def thumbnails(records: Sequence[ImageRecord], budget: int) -> Thumbnails:
    """Photos of the records, within `budget` bytes."""
    for side in SIDES:
        uris, total, unreadable = dict[str, str](), 0, 0
        for record in records:
            try:
                uri = photo_uri(photo_of(record), side, thumbnail=True)
            except InputError:
                unreadable += 1
                continue
            uris[record.image_id] = uri
            total += len(uri)
            if total > budget:
                break
        else:
            note = f"Photos are reduced to {side} pixels."
            if unreadable:
                note += f" {unreadable} of {len(records)} could not be read: their masks are drawn on grey."
            return Thumbnails(uris, side, note)
    note = (
        f"The {len(records):,} photos are left out: they need more than {budget / 1e6:.0f} MB. "
        "Masks are drawn on grey."
    )
    return Thumbnails({}, SIDES[0], note)


@dataclass(slots=True)
class MaskTable:
    """Distinct masks, reduced to the size of the embedded photos."""

    side: int
    codes: list[str] = field(default_factory=list)
    _places: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def index(self, rle: RLE | None) -> int:
        """Place of a mask in `codes`; -1 where there is none or it is empty."""
        if rle is None or not masks.area(rle):
            return -1
        key = (rle["counts"], rle["size"][0], rle["size"][1])
        if key not in self._places:
            self._places[key] = len(self.codes)
            self.codes.append(_reduced(rle, self.side)["counts"])
        return self._places[key]


def _reduced(rle: RLE, side: int) -> RLE:
    """The mask sampled at the middle of each reduced pixel, or every touched pixel where that leaves nothing."""
    height, width = rle["size"]
    reduced = reduced_size(height, width, side)
    if reduced == (height, width):
        return rle
    mask = masks.decode(rle)
    rows = (2 * np.arange(reduced[0]) + 1) * height // (2 * reduced[0])
    columns = (2 * np.arange(reduced[1]) + 1) * width // (2 * reduced[1])
    sampled = mask[rows[:, None], columns]
    if not sampled.any():
        grey = Image.fromarray(mask.view(np.uint8) * 255)
        sampled = np.asarray(grey.resize((reduced[1], reduced[0]), Image.Resampling.BOX)) > 0
    return masks.encode(sampled)


def browser_data(group: Group, budget: int) -> tuple[str, dict[str, Any]]:
    """What the page says about its photos, and the data: one entry per column and expression of any run.

    Args:
        group: the runs of one benchmark, at least one with answers.
        budget: bytes of the photos.
    """
    runs = group.answered
    first: dict[str, Case] = {}
    for run in runs:
        for case in run.cases:
            first.setdefault(case.name, case)
    cases = list(first.values())
    records = {case.record.image_id: case.record for case in cases}
    photos = thumbnails(list(records.values()), budget)
    places = {image_id: k for k, image_id in enumerate(records)}
    table = MaskTable(photos.side)
    return photos.note, {
        "runs": [_run_columns(run, list(first), table) for run in runs],
        "granularities": [NAMES[g] for g in GRANULARITIES],
        "outcomes": list(OUTCOMES),
        "images": [
            [*reduced_size(r.height, r.width, photos.side), photos.uris.get(r.image_id)]
            for r in records.values()
        ],
        "id": list(first),
        "text": [c.expression.text for c in cases],
        "image": [places[c.record.image_id] for c in cases],
        "granularity": [GRANULARITIES.index(c.expression.granularity.value) for c in cases],
        "level": [c.expression.level for c in cases],
        "truth": [table.index(c.expression.rle) for c in cases],
        "masks": table.codes,
    }


def _run_columns(run: Run, names: Sequence[str], table: MaskTable) -> dict[str, Any]:
    cases = {case.name: case for case in run.cases}

    def column(value: Callable[[Case], Any]) -> list[Any]:
        return [value(cases[name]) if name in cases else None for name in names]

    return {
        "label": run.label,
        "outcome": column(lambda c: OUTCOMES.index(c.outcome)),
        "iou": column(lambda c: round(c.iou, 4)),
        "score": column(lambda c: _rounded(c.prediction.score)),
        "absent": column(lambda c: _rounded(c.prediction.p_absent)),
        "mask": column(lambda c: table.index(None if c.rejected else c.prediction.rle)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
