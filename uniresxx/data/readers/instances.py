"""COCO's `instances.json`: images and annotations by id, segmentations as masks, licences of photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.readers.fields import file_name_of, need, size_of, whole
from uniresxx.data.readers.files import load_json
from uniresxx.errors import BadAnnotationError, InputError
from uniresxx.imaging import masks
from uniresxx.types import RLE

NOT_STATED = "not stated"
COCO_LICENCES: dict[Any, str] = {  # of photos, by the numbers of COCO's own files
    1: "Attribution-NonCommercial-ShareAlike License",
    2: "Attribution-NonCommercial License",
    3: "Attribution-NonCommercial-NoDerivs License",
    4: "Attribution License",
    5: "Attribution-ShareAlike License",
    6: "Attribution-NoDerivs License",
    7: "No known copyright restrictions",
    8: "United States Government Work",
}


def drawn(row: Mapping[str, Any], size: tuple[int, int], name: str) -> RLE:
    """OR of the polygons or run lengths in `segmentation` at the photo's size (height, width); it may be empty.

    Raises BadAnnotationError that starts with `name`.
    """
    try:
        return masks.from_coco(need(row, "segmentation", name), *size)
    except InputError as error:
        raise BadAnnotationError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None


def truth(row: Mapping[str, Any], size: tuple[int, int], name: str, who: str) -> RLE:
    """As `drawn`; BadAnnotationError also where no pixel is covered: `who` has no target then."""
    rle = drawn(row, size, name)
    if masks.area(rle) == 0:
        raise BadAnnotationError(f"{name}: its segmentation covers no pixel, so it can be no target of {who}")
    return rle


def overlap_source(
    rows: Sequence[Mapping[str, Any]], rles: Sequence[RLE], size: tuple[int, int]
) -> dict[str, RLE]:
    """{"overlap": pixels that more than one polygon or code of `rows` covers}, empty where there is none.

    `rles` are the masks of the rows (`truth`). LISA sums polygons, so these pixels are no truth in its scores;
    our masks are ORs and do not know them. Only polygons whose boxes meet are drawn a second time.
    """
    pieces = [_pieces(row["segmentation"]) for row in rows]
    if not _may_meet([piece for some in pieces for piece in some]):
        return {}
    layers: list[RLE] = []
    for some, rle in zip(pieces, rles, strict=True):
        layers += [masks.from_coco([piece], *size) for piece in some] if _may_meet(some) else [rle]
    if sum(map(masks.area, layers)) == masks.area(masks.union(layers, size)):
        return {}
    counts = np.zeros(size, dtype=np.int32)
    for layer in layers:
        counts += masks.decode(layer)
    return {"overlap": masks.encode(counts > 1)}


def _pieces(segmentation: Any) -> list[Any]:
    """What is summed where public code sums: the solid polygons, or the run-length codes."""
    if not isinstance(segmentation, list | tuple):
        return [segmentation]
    if segmentation and isinstance(segmentation[0], int | float):
        return [segmentation]  # one flat polygon
    return [piece for piece in segmentation if isinstance(piece, Mapping) or len(piece) >= 6]


def _may_meet(pieces: Sequence[Any]) -> bool:
    """Whether two pieces may share a pixel: their boxes do, or one is no polygon."""
    if len(pieces) < 2 or any(isinstance(piece, Mapping) for piece in pieces):
        return len(pieces) >= 2
    return _boxes_meet(pieces)


def _boxes_meet(polygons: Sequence[Sequence[float]]) -> bool:
    """Whether the boxes of two polygons share a pixel; one pixel is left for how edges are drawn."""
    points = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
    low = np.array([item.min(axis=0) for item in points]) - 1
    high = np.array([item.max(axis=0) for item in points]) + 1
    apart = (low[:, None] > high[None]) | (high[:, None] < low[None])
    meet = ~apart.any(axis=-1)
    return bool(meet.sum() > len(points))  # each meets itself


@dataclass(frozen=True)
class Instances:
    """COCO images and annotations by id."""

    path: Path
    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Mapping[str, Any]]
    licences: Mapping[Any, str] = field(default_factory=dict)  # of photos: id -> name
    categories: Mapping[Any, str] = field(default_factory=dict)  # names by id; empty where the file has none

    @classmethod
    def load(cls, path: Path) -> Instances:
        """Read `instances.json`; InputError naming file and field where it is not of COCO's form."""
        content = load_json(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: must hold a COCO object, not {type(content).__name__}")
        tables = {}
        for name in ("images", "annotations"):
            rows = need(content, name, str(path))
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise InputError(f"{path}: {name} must be a list of objects")
            tables[name] = _by_id(rows, f"{path}: {name}")
        return cls(
            path,
            tables["images"],
            tables["annotations"],
            _names_by_id(content.get("licenses")) or COCO_LICENCES,
            _names_by_id(content.get("categories")),
        )

    def image(self, image_id: int, who: str) -> tuple[str, int, int]:
        """(file name, height, width) of an image."""
        if image_id not in self.images:
            raise InputError(f"{who}: image_id {image_id} is not in {self.path}")
        row, name = self.images[image_id], f"{self.path}: image {image_id}"
        return file_name_of(row, name), *size_of(row, name)

    def licence(self, image_id: int) -> str:
        """The licence of a photo by its name, "not stated" where the file has none."""
        return photo_licence(self.images[image_id], self.licences)

    def category(self, row: Mapping[str, Any], who: str) -> str:
        """The name of an annotation's category."""
        number = whole(need(row, "category_id", who), "category_id", who)
        if number not in self.categories:
            raise InputError(f"{who}: category_id {number} is not in {self.path}")
        return self.categories[number]

    @cached_property
    def rows_of_image(self) -> dict[Any, list[Mapping[str, Any]]]:
        """The annotations of each image by its id."""
        rows: dict[Any, list[Mapping[str, Any]]] = {}
        for row in self.annotations.values():
            if isinstance(row.get("image_id"), int):
                rows.setdefault(row["image_id"], []).append(row)
        return rows

    def boxes(self, image_id: int, who: str) -> dict[str, np.ndarray]:
        """{"object": xyxy (N, 4) float32 of all instances of an image}, crowd regions left out.

        Empty where an instance has no `bbox` of four numbers: the boxes would not be complete.
        """
        _, height, width = self.image(image_id, who)
        rows = [row for row in self.rows_of_image.get(image_id, ()) if not row.get("iscrowd", 0)]
        try:
            xywh = np.array([row["bbox"] for row in rows], dtype=np.float32).reshape(len(rows), 4)
        except (KeyError, TypeError, ValueError, OverflowError):
            return {}
        if not np.isfinite(xywh).all():
            return {}
        corners = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
        boxes = corners.clip(0, [width, height, width, height]).astype(np.float32)
        return {"object": boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]}

    def annotation(self, ann_id: int, image_id: int, who: str) -> Mapping[str, Any]:
        """An annotation, which must belong to the image."""
        if ann_id not in self.annotations:
            raise InputError(f"{who}: ann_id {ann_id} is not in {self.path}")
        row = self.annotations[ann_id]
        if whole(row.get("image_id", image_id), "image_id", f"{self.path}: ann {ann_id}") != image_id:
            raise InputError(f"{who}: ann_id {ann_id} belongs to image {row['image_id']}, not to {image_id}")
        return row

    def is_crowd(self, ann_id: int, image_id: int, who: str) -> bool:
        """Crowd regions mean "many" and are never a referent."""
        return bool(self.annotation(ann_id, image_id, who).get("iscrowd", 0))

    def mask(self, ann_id: int, image_id: int, who: str) -> RLE:
        """OR of an annotation's polygons or run lengths at the photo's size; InputError where empty."""
        row = self.annotation(ann_id, image_id, who)
        return truth(row, self.image(image_id, who)[1:], f"{self.path}: ann {ann_id}", who)

    def overlap_source(
        self, ann_ids: Sequence[int], rles: Sequence[RLE], image_id: int, who: str
    ) -> dict[str, RLE]:
        """`overlap_source` of annotations and their masks."""
        rows = [self.annotation(ann_id, image_id, who) for ann_id in ann_ids]
        return overlap_source(rows, rles, self.image(image_id, who)[1:])


def _by_id(rows: Sequence[Mapping[str, Any]], who: str) -> dict[int, Mapping[str, Any]]:
    """Rows by their `id`; InputError where two different rows have the same."""
    found: dict[int, Mapping[str, Any]] = {}
    for index, row in enumerate(rows):
        number = whole(need(row, "id", f"{who}[{index}]"), "id", f"{who}[{index}]")
        if found.setdefault(number, row) != row:
            raise InputError(f"{who}[{index}]: id {number} is also that of another one; correct the file")
    return found


def photo_licence(row: Mapping[str, Any], names: Mapping[Any, str] = COCO_LICENCES) -> str:
    """The licence of COCO's image row by its name, "not stated" where the row has none."""
    number = row.get("license")
    known = isinstance(number, int | str) and number in names
    return f"{names[number]} (COCO {number})" if known else NOT_STATED


def _names_by_id(rows: Any) -> dict[Any, str]:
    """A list of photo licences or categories as id -> name; what is not of that form is left aside."""
    good = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {
        row["id"]: row["name"]
        for row in good
        if isinstance(row.get("id"), int | str) and isinstance(row.get("name"), str)
    }
