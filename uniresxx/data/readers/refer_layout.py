"""Any set in the layout of the refer release: `<folder>/refs(SPLIT_BY).p` (or `.json`) and `instances.json`.

Ref-ZOM has targets as lists, empty for none. FP-RefCOCO marks sentences that mean nothing in the photo
(`is_false_premise`, or `exist` false). RRSIS-D has photographs from the air with names and ids of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniresxx.data.readers.collector import Collector, Photo, Target, records_of_split
from uniresxx.data.readers.fields import Sentence, need, sentences, shown, whole
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import PHOTO_FOLDERS, PhotoFinder, data_folders
from uniresxx.data.readers.grefcoco import ann_ids_of
from uniresxx.data.readers.instances import NOT_STATED, Instances
from uniresxx.errors import InputError, NotThereError
from uniresxx.imaging import masks
from uniresxx.types import Granularity, ImageRecord

# name -> (folder, name of the splits in its file, splits)
NAMED = {
    "rrsisd": ("rrsisd", "unc", ("train", "val", "test")),
    "refzom": ("ref-zom", "final", ("train", "test")),
    **{
        f"fp{name}": (f"fp{name}", "berkeley_exclude_unified", ("train", "val", "test"))
        for name in ("refcoco", "refcoco+", "refcocog")
    },
}
_FREE = re.compile(r"(?P<folder>[\w+.-]{1,80})(?:\((?P<split_by>[\w.-]{1,80})\))?")


def refs_file(root: Path, folder: str, split_by: str | None) -> Path:
    """The file of refs in a folder; InputError where there are several and `split_by` names none."""
    for place in data_folders(root, (folder,)):
        if split_by is not None:
            found = [place / f"refs({split_by}){ending}" for ending in (".p", ".json")]
            found = [path for path in found if path.is_file()][:1]
        else:
            found = sorted([*place.glob("refs(*).p"), *place.glob("refs(*).json")])
        if len(found) > 1:
            names = ", ".join(f"{folder}({path.stem[5:-1]})" for path in found)
            raise InputError(f"{place}: holds several lists of refs; name one: {names}")
        if found:
            return found[0]
    raise NotThereError(
        f"{root}: holds no {folder}/refs({split_by or '*'}).p; --data must name the folder above it"
    )


def named_folder(name: str) -> tuple[str, str | None]:
    """(folder, name of the splits) of `FOLDER` or `FOLDER(SPLIT_BY)`."""
    found = _FREE.fullmatch(name)
    if found is None or ".." in name:
        raise InputError(f"{shown(name)}: must be FOLDER or FOLDER(SPLIT_BY), as in refer:myset(unc)")
    return found["folder"], found["split_by"]


def splits_there(root: Path, name: str) -> list[str]:
    """Splits in a list of refs, in order of appearance."""
    path = refs_file(root, *named_folder(name))
    found = dict.fromkeys(
        str(need(record, "split", f"{path}: {i}")) for i, record in enumerate(load_records(path))
    )
    return [split for split in found if re.fullmatch(r"[\w+-]{1,60}", split)]


def read_refer(
    root: Path, split: str, folder: str, split_by: str | None = None, prefix: str | None = None
) -> list[ImageRecord]:
    """Records of one split, ids `<prefix>/<split>/<sent_id>` (`<ref>_<place>` where a sentence has no `sent_id`).

    Targets: a list of annotations, one, [-1] or none; crowd regions are none. A sentence marked as false has no
    target. Photos are looked for below the folder and below `images/<folder>`, with `JPEGImages` or a year between.
    Raises InputError naming file, record and field.
    """
    path = refs_file(root, folder, split_by)
    if not (path.parent / "instances.json").is_file():
        raise NotThereError(f"{path.parent}: holds no instances.json, which has the masks")
    instances = Instances.load(path.parent / "instances.json")
    below = f"{path.parent.relative_to(root)}"
    kinds = ("", "/JPEGImages", "/trainval2014", "/train2014", "/images")
    own = [f"{base}{kind}" for base in (f"images/{folder}", f"{below}/images", below) for kind in kinds]
    finder = PhotoFinder(
        root, (*PHOTO_FOLDERS, "images/trainval2014", *own, *(f"images{kind}" for kind in kinds))
    )
    collector = Collector(f"{path}: {split}", root, f"{prefix or f'refer:{folder}'}/{split}", NOT_STATED)
    for index, (who, record) in enumerate(records_of_split(load_records(path), split, path)):
        image_id = whole(need(record, "image_id", who), "image_id", who)
        file_name, height, width = instances.image(image_id, who)
        photo = Photo(
            str(image_id), finder.path(file_name, who), (height, width), instances.licence(image_id),
            instances.boxes(image_id, who),
        )  # fmt: skip
        target = _target(collector, instances, record, image_id, photo.size, who)
        if target is None:
            continue
        absent = _false_sentences(record, who)
        ref = record.get("ref_id", index)
        for place, sentence in enumerate(sentences(record, "sent_id", who)):
            asked: list[tuple[object, Sentence]] = [(sentence.native_id or f"{ref}_{place}", sentence)]
            none = replace(target, granularity=Granularity.NONE, rle=None, instances=None)
            collector.add(who, photo, none if place in absent else target, asked)
    return collector.records()


def _target(
    collector: Collector,
    instances: Instances,
    record: Mapping[str, Any],
    image_id: int,
    size: tuple[int, int],
    who: str,
) -> Target | None:
    """What a ref points at; None, and left out, where that is crowd regions alone, or a mask without a pixel."""
    stated = ann_ids_of(record, who)
    single = [number for number in stated if not instances.is_crowd(number, image_id, who)]
    source: dict[str, Any] = {"ref_id": record.get("ref_id"), "ann_id": single}
    if not stated:
        return Target(Granularity.NONE, None, source)
    if not single:
        collector.leave_out(f"{who}: its only targets are crowd regions")
        return None
    rows = [instances.annotation(number, image_id, who) for number in single]
    rles = [collector.mask(row, size, f"{instances.path}: ann {shown(row['id'])}") for row in rows]
    seen = [rle for rle in rles if rle is not None]
    if len(seen) < len(rles):
        return None
    kind = Granularity.OBJECT if len(seen) == 1 else Granularity.MULTI
    return Target(kind, masks.union(seen, size), source, tuple(seen))


def _false_sentences(record: Mapping[str, Any], who: str) -> set[int]:
    """Places of the sentences that mean nothing in the photo."""
    found = set()
    for place, item in enumerate(need(record, "sentences", who)):
        if isinstance(item, dict) and (item.get("is_false_premise", False) or not item.get("exist", True)):
            found.add(place)
    return found
