"""Objects with their parts, as sets of parts give them, and phrases that mean them where no sentence does.

"the wheel of the car" means all visible wheels of the car, as in RefCOCOm. A category names an object only where
the photo shows one of it; several are meant together ("all wheels of the cars"), and where a set does not say how
many the photo shows (crowd regions, categories that were not annotated exhaustively) there is no phrase.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import Sentence
from uniresxx.data.readers.part_names import plural
from uniresxx.imaging import masks
from uniresxx.types import RLE, Granularity, ImageRecord

Owner = TypeVar("Owner", str, int)  # a category, or the id of an object


@dataclass(frozen=True, slots=True)
class PartObject:
    """An object of a photo.

    Args:
        category: a noun.
        rle: its mask; None where the set has masks of parts alone.
        parts: part noun -> all its instances on this object, united.
        source: native ids.
        has_parts: whether its parts were annotated; they may still be out of sight.
    """

    category: str
    rle: RLE | None
    parts: Mapping[str, RLE]
    source: Mapping[str, Any] = field(default_factory=dict)
    has_parts: bool = True


@dataclass(frozen=True, slots=True)
class PartImage:
    """The objects of a photo; the photo may show more objects of the categories in `uncounted`."""

    photo: Photo
    objects: tuple[PartObject, ...]
    uncounted: frozenset[str] = frozenset()

    def groups(self) -> dict[str, list[PartObject]]:
        """The objects by category."""
        found: dict[str, list[PartObject]] = {}
        for item in self.objects:
            found.setdefault(item.category, []).append(item)
        return found


def united(pieces: Iterable[tuple[str, RLE]], size: tuple[int, int]) -> dict[str, RLE]:
    """Name -> OR of its masks."""
    found: dict[str, list[RLE]] = {}
    for name, rle in pieces:
        found.setdefault(name, []).append(rle)
    return {name: rles[0] if len(rles) == 1 else masks.union(rles, size) for name, rles in found.items()}


def whole_parts(named: Iterable[tuple[Owner, str, RLE | None]]) -> dict[Owner, list[tuple[str, RLE]]]:
    """Owner -> (part, mask) of all its parts that are seen, from (owner, part, mask or None: unreadable).

    A part of which one mask cannot be read has none: "all wheels" would not mean them all.
    """
    items = list(named)
    unknown = {(owner, part) for owner, part, rle in items if rle is None}
    found: dict[Owner, list[tuple[str, RLE]]] = {}
    for owner, part, rle in items:
        if rle is not None and masks.area(rle) and (owner, part) not in unknown:
            found.setdefault(owner, []).append((part, rle))
    return found


def category_phrases(
    image: PartImage, report: Collector, with_objects: bool = True
) -> Iterator[tuple[str, str, Target]]:
    """(native id, text, target) of every phrase of a photo; ids are `<image>:<category>[:<part>]`.

    What cannot be said is counted in the report by reason.
    """
    size = image.photo.size
    for category, objects in image.groups().items():
        if category in image.uncounted:
            report.count("categories that a photo may show more of than was annotated")
            continue
        many, rles = len(objects) > 1, [item.rle for item in objects if item.rle is not None]
        native, source = f"{image.photo.image_id}:{category}".replace(" ", "_"), _source(objects)
        if with_objects and len(rles) == len(objects):
            kind = Granularity.MULTI if many else Granularity.OBJECT
            noun = f"all {plural(category)}" if many else f"the {category}"
            yield native, noun, Target(kind, masks.union(rles, size), source)
        if not all(item.has_parts for item in objects):
            report.count("categories with objects whose parts were not annotated")
            continue
        for part, text, rle in _parts_of(category, objects, size):
            target = Target(Granularity.PART, rle, {**source, "part": part})
            yield f"{native}:{part}".replace(" ", "_"), text, target


def _parts_of(
    category: str, objects: list[PartObject], size: tuple[int, int]
) -> Iterator[tuple[str, str, RLE]]:
    """(part, its phrase, mask) for every part that some object of a category shows."""
    pieces = [(part, rle) for item in objects for part, rle in item.parts.items()]
    for part, rle in united(pieces, size).items():
        if len(objects) > 1:
            yield part, f"all {plural(part)} of the {plural(category)}", rle
        else:
            yield part, f"{part} of the {category}", rle


def _source(objects: list[PartObject]) -> dict[str, Any]:
    return {"category": objects[0].category, "objects": [dict(item.source) for item in objects]}


def records_of_parts(collector: Collector, images: Iterable[PartImage]) -> list[ImageRecord]:
    """The phrases of all photos."""
    for image in images:
        for native, text, target in category_phrases(image, collector):
            asked = [(native, Sentence(text, text, None))]
            collector.add(f"image {image.photo.image_id}", image.photo, target, asked)
    return collector.records()
