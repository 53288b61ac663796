"""Newer sets to measure on: RefCOCO-M (cleaned masks of RefCOCO's val) and GSEval (GroundingSuite)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import (
    Sentence,
    file_name_of,
    list_of,
    need,
    photo_id,
    sentences,
    shown,
    text_of,
    whole,
)
from uniresxx.data.readers.files import json_lines
from uniresxx.data.readers.folders import COCO_FOLDERS, PhotoFinder, data_file
from uniresxx.data.readers.hub import parquet_rows, photo_bytes
from uniresxx.data.readers.instances import NOT_STATED
from uniresxx.errors import InputError, NotThereError
from uniresxx.imaging import decode as images
from uniresxx.imaging.formats import FORMATS
from uniresxx.types import Granularity, ImageRecord, PhotoInside

REFCOCO_M_SPLITS = ("val",)
GSEVAL_FOLDERS = ("gseval", "GroundingSuite")
# class_id -> (its name in the paper, what it is for us); a region of stuff is one thing to point at
GSEVAL_CLASSES = {
    1: ("stuff", Granularity.OBJECT),
    2: ("part", Granularity.PART),
    3: ("multi", Granularity.MULTI),
    4: ("single", Granularity.OBJECT),
}
GSEVAL_SPLITS = ("val", *(f"val_{name}" for name, _ in GSEVAL_CLASSES.values()))


def read_refcoco_m(root: Path, split: str) -> list[ImageRecord]:
    """Records of moondream/refcoco-m, ids `refcoco_m/val/<id of the sample>_<place>`; photos stay in the parquet.

    One row per photo: {image, image_id, file_name, samples [{id, sentences [text], mask (RLE), …}]}. Its masks were
    drawn again for RefCOCO's val (unc): numbers on it and on refcoco/val belong side by side. Raises InputError
    naming file, row and field.
    """
    if split not in REFCOCO_M_SPLITS:
        raise NotThereError(f"refcoco_m has no split {split!r}; it has {', '.join(REFCOCO_M_SPLITS)}")
    collector = Collector(f"moondream/refcoco-m {split}", root, f"refcoco_m/{split}", "MIT (RefCOCO-M)")
    columns = ("image", "image_id", "file_name", "samples")
    for place, row in parquet_rows(root, "moondream", "refcoco-m", "validation", columns):
        who = str(place)
        file_name, image_id = file_name_of(row, who), whole(need(row, "image_id", who), "image_id", who)
        size = images.encoded_size(photo_bytes(row, who))
        if size is None:
            raise InputError(f"{who}: image is no photo in {', '.join(FORMATS)}, or is over the cap")
        photo = Photo(str(image_id), PhotoInside("parquet", str(place.path), str(place.row), file_name), size)
        for index, sample in enumerate(list_of(row, "samples", who)):
            name = f"{who}: sample {index}"
            if not isinstance(sample, dict):
                raise InputError(f"{name}: must be an object, not {shown(sample)}")
            rle = collector.mask({"segmentation": need(sample, "mask", name)}, size, name)
            if rle is None:
                continue
            number = whole(need(sample, "id", name), "id", name)
            asked = [(f"{number}_{i}", item) for i, item in enumerate(sentences(sample, "sent_id", name))]
            source = {"ref_id": number, "category": sample.get("category")}
            collector.add(name, photo, Target(Granularity.OBJECT, rle, source), asked)
    return collector.records()


def read_gseval(root: Path, split: str) -> list[ImageRecord]:
    """Records of GroundingSuite-Eval.jsonl, ids `gseval/<split>/<idx>`; the text asked is `caption`.

    `val` has all four classes, `val_stuff`, `val_part`, `val_multi` and `val_single` one each: the mean IoU of each
    and of all is what its paper reports. Photos are those of COCO unlabeled2017. Raises InputError naming file, line
    and field.
    """
    if split not in GSEVAL_SPLITS:
        raise NotThereError(f"gseval has no split {split!r}; it has {', '.join(GSEVAL_SPLITS)}")
    path = data_file(root, GSEVAL_FOLDERS, ("GroundingSuite-Eval.jsonl",))
    finder, wanted = PhotoFinder(root, COCO_FOLDERS), split.removeprefix("val").lstrip("_")
    collector = Collector(f"{path}: {split}", root, f"gseval/{split}", "not stated (GroundingSuite)")
    for who, row in json_lines(path):
        number = whole(need(row, "class_id", who), "class_id", who)
        if number not in GSEVAL_CLASSES:
            raise InputError(
                f"{who}: class_id must be one of {', '.join(map(str, GSEVAL_CLASSES))}, not {number}"
            )
        name, granularity = GSEVAL_CLASSES[number]
        if wanted in ("", name):
            _add_gseval(collector, finder, row, Target(granularity, None, {"class": name}), who)
    return collector.records()


def _add_gseval(
    collector: Collector, finder: PhotoFinder, row: Mapping[str, Any], kind: Target, who: str
) -> None:
    file_name, caption = file_name_of(row, who, "image_path"), text_of(row, "caption", who)
    segmentation = need(row, "segmentation", who)
    if not isinstance(segmentation, dict) or "size" not in segmentation:
        raise InputError(f"{who}: segmentation must be run lengths with a size, not {shown(segmentation)}")
    size = [whole(side, "segmentation size", who) for side in list_of(segmentation, "size", who)]
    if len(size) != 2:
        raise InputError(f"{who}: size of the segmentation must be height and width, not {shown(size)}")
    rle = collector.mask(row, (size[0], size[1]), who)
    if rle is None:
        return
    photo = Photo(photo_id(file_name), finder.path(file_name, who), (size[0], size[1]), NOT_STATED)
    asked = [(need(row, "idx", who), Sentence(caption, caption, None))]
    collector.add(
        who, photo, Target(kind.granularity, rle, {**kind.source, "label": row.get("label")}), asked
    )
