"""Captions of regions: a box in the question, plain words as the answer, no masks.

Our own layout, into which other sets (GranD, a captioner's output) are easily written:
`region_captions/SPLIT.json`, a list, or `region_captions/SPLIT.jsonl`, a record per line, of {image, width, height,
regions [{xyxy or xywh, caption, id}], coco_id}; `id` and `coco_id` (of a COCO photo) may be absent. Photos lie in
`region_captions/images/`, `region_captions/`, `images/` or the data folder. Visual Genome as released:
`visual_genome/region_descriptions.json` and `visual_genome/image_data.json`, photos in `VG_100K` and `VG_100K_2`,
there or below `vg/`.
Shapes: N boxes of a photo.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.readers.collector import Collector, Photo
from uniresxx.data.readers.fields import file_name_of, list_of, need, shown, size_of, text_of, whole
from uniresxx.data.readers.files import json_lines, load_records
from uniresxx.data.readers.folders import PhotoFinder, data_file, data_folders
from uniresxx.errors import BadAnnotationError, InputError, NotThereError
from uniresxx.types import ImageRecord, Turn

FOLDERS = ("region_captions",)
VISUAL_GENOME = ("visual_genome", "VisualGenome", "vg")
GRID = 999  # corners in a question are whole numbers from 0 to this, across the photo and down (UniRES' captioner)
# Our choice: the first asks as UniRES' captioner is asked; a region has that of its place in the photo's list.
QUESTIONS = (
    "The caption of this region {region} is?",
    "Describe the region {region}.",
    "What is in the region {region}?",
    "Write a caption of {region}.",
)
Box = tuple[float, float, float, float]
Region = tuple[object, Box, str]  # id, corners in pixels, caption


def read_region_captions(root: Path, split: str) -> list[ImageRecord]:
    """Records of one split, a conversation of one turn per region, ids `region_captions/<split>/<id>`.

    The id is the region's own, else `<record>_<place>`. A region with a blank caption or without a pixel in the photo
    is left out and reported. Raises InputError naming file, record and region.
    """
    path = data_file(root, FOLDERS, (f"{split}.json", f"{split}.jsonl"))
    parents = _folders_below(root, FOLDERS)
    finder = PhotoFinder(root, (*(f"{name}/images" for name in parents), *parents, "images", "."))
    collector = Collector(str(path), root, f"region_captions/{split}", "not stated")
    listed = json_lines(path) if path.suffix == ".jsonl" else _named(load_records(path), path)
    for index, (who, row) in enumerate(listed):
        name = file_name_of(row, who, "image")
        photo = Photo(name, finder.path(name, who), size_of(row, who), coco_id=_coco_id(row, who))
        regions: list[Region] = []
        for place, item in enumerate(_regions(row, who)):
            with collector.leaving_out():
                box = _named_box(item, f"{who}: region {place}")
                regions.append((item.get("id", f"{index}_{place}"), box, text_of(item, "caption", who)))
        _add(collector, photo, regions)
    return collector.records()


def _named(rows: Sequence[dict[str, Any]], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with their names for errors."""
    return ((f"{path}: record {index}", row) for index, row in enumerate(rows))


def splits_there(root: Path) -> list[str]:
    """The splits of our own layout that lie below a data folder."""
    paths = (path for folder in data_folders(root, FOLDERS) for path in sorted(folder.iterdir()))
    return list(dict.fromkeys(path.stem for path in paths if path.suffix in (".json", ".jsonl")))


def read_visual_genome(root: Path, split: str) -> list[ImageRecord]:
    """Visual Genome's region descriptions; it has one split, `train`. Ids `visual_genome/train/<region_id>`.

    `image_data.json` has the sizes, and the COCO ids of the photos that are COCO's, which the leak guard needs.
    Regions are left out as in `read_region_captions`. Raises InputError naming file, record and region.
    """
    path = data_file(root, VISUAL_GENOME, ("region_descriptions.json",))
    about = data_file(root, VISUAL_GENOME, ("image_data.json",))
    known = {_image_id(row, who): row for who, row in _named(load_records(about), about)}
    parents = _folders_below(root, VISUAL_GENOME)
    finder = PhotoFinder(root, [f"{name}/{inner}" for name in parents for inner in ("VG_100K", "VG_100K_2")])
    collector = Collector(str(path), root, f"visual_genome/{split}", "CC BY 4.0 (Visual Genome)")
    for who, row in _named(load_records(path), path):
        image_id = _image_id(row, who)
        if image_id not in known:
            raise InputError(f"{who}: {about} does not list image {image_id}; download both files again")
        image = known[image_id]
        photo = Photo(
            str(image_id),
            finder.path(f"{image_id}.jpg", who),
            size_of(image, f"{about}: image {image_id}"),
            coco_id=_coco_id(image, f"{about}: image {image_id}"),
        )
        regions: list[Region] = []
        for place, item in enumerate(_regions(row, who)):
            named = f"{who}: region {place}"
            values = [need(item, key, named) for key in ("x", "y", "width", "height")]
            with collector.leaving_out():
                x, y, width, height = _numbers(values, named)
                phrase = text_of(item, "phrase", named)
                regions.append((need(item, "region_id", named), (x, y, x + width, y + height), phrase))
        _add(collector, photo, regions)
    return collector.records()


def visual_genome_coco_ids(root: Path) -> dict[str, int]:
    """Visual Genome's image ids (text) of the photos that are COCO's, with COCO's ids; {} where it is not there."""
    try:
        path = data_file(root, VISUAL_GENOME, ("image_data.json",))
    except NotThereError:
        return {}
    listed = ((_image_id(row, who), _coco_id(row, who)) for who, row in _named(load_records(path), path))
    return {str(image_id): coco_id for image_id, coco_id in listed if coco_id is not None}


def on_grid(box: Box, size: tuple[int, int]) -> str:
    """The corners of a box (x0, y0, x1, y1 in pixels) as text on the grid; `size` is the photo's (height, width)."""
    height, width = size
    x0, y0, x1, y1 = (
        round(GRID * value / side) for value, side in zip(box, (width, height, width, height), strict=True)
    )
    return f"({x0},{y0}),({x1},{y1})"


def _add(collector: Collector, photo: Photo, regions: Sequence[Region]) -> None:
    """Add the regions of a photo (id, box in pixels, caption), and their boxes as those of captioned regions."""
    if photo.image_id in collector.images:
        raise InputError(f"{collector.where}: image {photo.image_id} is in two records: join their regions")
    height, width = photo.size
    boxes: list[Box] = []
    asked: list[tuple[object, Turn]] = []
    for native, (x0, y0, x1, y1), caption in regions:
        box = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if not caption or box[2] - box[0] < 1 or box[3] - box[1] < 1:
            collector.leave_out(
                f"{collector.where}: region {native}: has no caption, or no pixel in its photo"
            )
            continue
        question = QUESTIONS[len(boxes) % len(QUESTIONS)].format(region=on_grid(box, photo.size))
        asked.append((native, Turn(question, answer=caption)))
        boxes.append(box)
    boxes_N4 = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    for native, turn in asked:
        collector.add_dialogue(replace(photo, boxes={"region": boxes_N4}), native, (turn,))


def _folders_below(root: Path, names: Sequence[str]) -> list[str]:
    return [folder.relative_to(root).as_posix() for folder in data_folders(root, names)]


def _regions(row: Mapping[str, Any], who: str) -> Iterator[Mapping[str, Any]]:
    regions = list_of(row, "regions", who)
    if not all(isinstance(item, dict) for item in regions):
        raise InputError(f"{who}: regions must be a list of objects, not {shown(regions)}")
    yield from regions


def _named_box(region: Mapping[str, Any], who: str) -> Box:
    """`xyxy`, or `xywh` as corners; BadAnnotationError where a region has not exactly one of them."""
    named = [name for name in ("xyxy", "xywh") if name in region]
    if len(named) != 1:
        raise BadAnnotationError(
            f"{who}: must have one of xyxy and xywh, a box in pixels; it has {named or 'neither'}"
        )
    a, b, c, d = _numbers(region[named[0]], who)
    return (a, b, c, d) if named[0] == "xyxy" else (a, b, a + c, b + d)


def _numbers(values: Any, who: str) -> Box:
    plain = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )
    if not plain or len(values) != 4:
        raise BadAnnotationError(f"{who}: a box must be four numbers in pixels, not {shown(values)}")
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


def _image_id(row: Mapping[str, Any], who: str) -> int:
    """Visual Genome calls it `id` in one file and version, `image_id` in another."""
    name = "id" if "id" in row else "image_id"
    return whole(need(row, name, who), name, who)


def _coco_id(row: Mapping[str, Any], who: str) -> int | None:
    return None if row.get("coco_id") is None else whole(row["coco_id"], "coco_id", who)
