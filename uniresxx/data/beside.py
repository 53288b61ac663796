"""What a benchmark knows of its expressions besides their truth: whose part a part is, and masks drawn again.

- Scenes know every object and its parts (the graph of the picture, drawn again from its number).
- In other sets a part belongs to the one object, of those that expressions of the photo mean, in which at least half
  of it lies; where that is none or several, it is not known. Its siblings are the other parts of that object.
- RefCOCO-M drew the masks of RefCOCO's val again. An expression of one is that of the other where photo and words
  are the same, and the words mean one mask of the photo in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from uniresxx.data.catalog import SCENES, find_store, open_benchmark
from uniresxx.data.guard import record_coco_id
from uniresxx.errors import NotThereError
from uniresxx.imaging import masks
from uniresxx.scoring.beside import Beside, PartOf
from uniresxx.types import RLE, Granularity, ImageRecord

MIN_INSIDE = 0.5  # share of a part that must lie on its object, as for composed parts (our choice)
# benchmark -> where the same referents have other masks
OTHER_MASKS = {
    "refcoco/val": "refcoco_m/val",
    "grefcoco/val": "refcoco_m/val",
    "refcoco_m/val": "refcoco/val",
}

_Key = tuple[int, str]  # COCO image id, words


def beside_of(records: Sequence[ImageRecord], benchmark: str, data: Path | None) -> Beside:
    """What is known of the expressions of a benchmark.

    Args:
        records: its images.
        benchmark: NAME/SPLIT.
        data: root of the data; second masks are looked for there.

    Raises:
        InputError: the data set with the second masks is there, and cannot be read.
    """
    other = OTHER_MASKS.get(benchmark)
    if other is None or (data is None and find_store(other, None) is None):
        return Beside(parts_of)
    try:
        truths = second_masks(records, open_benchmark(other, data))
    except NotThereError:
        return Beside(parts_of)
    return Beside(parts_of, truths, other)


def parts_of(record: ImageRecord) -> dict[str, PartOf]:
    """What each part of an image belongs to, by expression id."""
    return parts_of_scene(record) if record.source.get("preset") in SCENES else parts_by_place(record)


def parts_of_scene(record: ImageRecord) -> dict[str, PartOf]:
    """What each part of a drawn picture belongs to, by expression id."""
    from uniresxx.data.scenes.presets import preset_of
    from uniresxx.data.scenes.record import build_scene

    of = record.source
    scene = build_scene(preset_of(of["preset"]), of["split"], of["index"], of["seed"])
    found = {}
    for item in record.expressions:
        if item.granularity is not Granularity.PART or item.rle is None:
            continue
        own = set(np.unique(scene.paint_yx[masks.decode(item.rle)]).tolist())
        things = [thing for thing in scene.things if own & set(thing.paints)]
        # of a single wheel that is meant, the other wheel is a sibling too
        named: dict[str, set[int]] = {}
        for thing in things:
            for name, pieces in thing.parts.items():
                named.setdefault(name, set()).update({piece.paint for piece in pieces} - own)
        siblings = tuple(masks.encode(scene.mask(paints)) for paints in named.values() if paints)
        whole = masks.encode(scene.mask(paint for thing in things for paint in thing.paints))
        found[item.expression_id] = PartOf(whole, siblings)
    return found


def parts_by_place(record: ImageRecord) -> dict[str, PartOf]:
    """What each part of a photo belongs to, by expression id; a part in no object, or in several, is left out."""
    objects = _distinct(e.rle for e in record.expressions if e.granularity is Granularity.OBJECT)
    if not objects:
        return {}
    owner: dict[str, int] = {}
    parts = {
        e.expression_id: e.rle for e in record.expressions if e.granularity is Granularity.PART and e.rle
    }
    for name, rle in parts.items():
        least = MIN_INSIDE * masks.area(rle)
        inside = [
            k for k, other in enumerate(objects) if masks.intersection_area(rle, other) >= max(least, 1)
        ]
        if len(inside) == 1:
            owner[name] = inside[0]
    return {
        name: PartOf(
            objects[k], _distinct(parts[n] for n, m in owner.items() if m == k and parts[n] != parts[name])
        )
        for name, k in owner.items()
    }


def _distinct(rles: Iterable[RLE | None]) -> tuple[RLE, ...]:
    """Each mask once; those without a pixel are left out."""
    found = {rle["counts"]: rle for rle in rles if rle is not None and masks.area(rle)}
    return tuple(found.values())


def second_masks(records: Sequence[ImageRecord], others: Sequence[ImageRecord]) -> dict[str, RLE]:
    """The mask that another set has for the same words about the same photo, by expression id."""
    known, asked = _by_words(others), _by_words(records)
    found: dict[str, RLE] = {}
    for key in known.keys() & asked.keys():
        (second, _), (own, names) = known[key], asked[key]
        if second["size"] == own["size"]:
            found |= dict.fromkeys(names, second)
    return found


def _by_words(records: Sequence[ImageRecord]) -> dict[_Key, tuple[RLE, list[str]]]:
    """(mask, expression ids) of the objects of each photo by their words, unless they mean several masks."""
    found: dict[_Key, list[tuple[RLE, str]]] = {}
    for record in records:
        image_id = record_coco_id(record)
        if image_id is None:
            continue
        for item in record.expressions:
            if item.granularity is Granularity.OBJECT and item.rle is not None:
                key = (image_id, item.text.casefold().strip(" ."))
                found.setdefault(key, []).append((item.rle, item.expression_id))
    return {
        key: (items[0][0], [name for _, name in items])
        for key, items in found.items()
        if all(rle == items[0][0] for rle, _ in items)
    }
