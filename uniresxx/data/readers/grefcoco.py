"""gRefCOCO: expressions for no, one or several objects (`grefs(unc).p` or `.json`, `instances.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniresxx.data.readers.collector import Collector, Photo, Target, records_of_split, with_sent_ids
from uniresxx.data.readers.fields import need, shown, whole
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import PhotoFinder, data_file
from uniresxx.data.readers.instances import Instances
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import RLE, Granularity, ImageRecord

FOLDERS = ("grefcoco", "grefs")


def read_grefcoco(root: Path, split: str) -> list[ImageRecord]:
    """Records of one split, ids `grefcoco/<split>/<sent_id>`.

    The truth is in `ann_id`, as in the public readers, not in the flag `no_target`: a list, one number, [-1]
    or an empty list (no target). The mask is the OR of the targets; crowd regions are none, and a ref whose
    only targets are crowds, or one of whose targets has no readable mask, is left out and reported.
    Granularity: none, object (one target) or multi. Raises
    InputError naming file, record and field, also for an `ann_id` that `instances.json` does not know.
    """
    path = data_file(root, FOLDERS, ("grefs(unc).p", "grefs(unc).json"))
    instances = Instances.load(data_file(root, FOLDERS, ("instances.json",)))
    finder, collector = PhotoFinder(root), Collector(f"{path}: {split}", root, f"grefcoco/{split}")
    for who, record in records_of_split(load_records(path), split, path):
        image_id = whole(need(record, "image_id", who), "image_id", who)
        file_name, height, width = instances.image(image_id, who)
        ann_ids = ann_ids_of(record, who)
        targets = [ann_id for ann_id in ann_ids if not instances.is_crowd(ann_id, image_id, who)]
        if ann_ids and not targets:
            collector.leave_out(f"{who}: its only target, ann {ann_ids[0]}, is a crowd region")
            continue
        with collector.leaving_out():
            parts = [instances.mask(item, image_id, who) for item in targets]
            rle: RLE | None = masks.union(parts, (height, width)) if parts else None
            granularity = (Granularity.NONE, Granularity.OBJECT, Granularity.MULTI)[min(len(targets), 2)]
            source: dict[str, Any] = {"ref_id": record.get("ref_id"), "ann_id": targets}
            source |= instances.overlap_source(targets, parts, image_id, who)
            photo = Photo(
                str(image_id), finder.path(file_name, who), (height, width), instances.licence(image_id),
                instances.boxes(image_id, who),
            )  # fmt: skip
            target = Target(granularity, rle, source, tuple(parts) or None)
            collector.add(who, photo, target, with_sent_ids(record, who))
    return collector.records()


def ann_ids_of(record: Mapping[str, Any], who: str) -> list[int]:
    """The annotation ids of a ref, each once, in order; empty for no target."""
    value = need(record, "ann_id", who)
    items = value if isinstance(value, list | tuple) else [value]
    ann_ids = list(dict.fromkeys(whole(item, "ann_id", who) for item in items))
    if ann_ids == [-1]:
        return []
    if -1 in ann_ids:
        raise InputError(f"{who}: ann_id {shown(value)} mixes -1 (no target) with targets")
    return ann_ids
