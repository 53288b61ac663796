"""RefCOCOm: expressions for parts and objects, as CRIS-like lists and one mask file per segment.

`annotations/<stem>.json` holds {img_name, segment_id, sentences, …}, `masks/<segment_id>.png` the mask. The
folder is spelt RefCOCOm or Refcocom in the wild, sometimes one for the lists and the other for the masks: all
are searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniresxx.data.readers import cris
from uniresxx.data.readers.collector import Collector
from uniresxx.data.readers.fields import file_name_of
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import PhotoFinder, data_file, data_folders
from uniresxx.data.readers.instances import NOT_STATED
from uniresxx.errors import InputError, NotThereError
from uniresxx.types import Granularity, ImageRecord

FOLDERS = ("refcocom", "refcocom_benchmark")
PART_ONLY, OBJECT_PART = "_part_only", "_object_part"


def known_stems(root: Path) -> list[str]:
    """Stems of the annotation lists that are there (`val_part_only`, …)."""
    found = {
        item.stem.removeprefix("refcocom_")
        for folder in data_folders(root, FOLDERS)
        for item in (folder / "annotations").glob("*.json")
    }
    return sorted(found)


def read_refcocom(root: Path, stem: str) -> list[ImageRecord]:
    """Records of one list, ids `refcocom/<stem>/<segment_id>_<idx>`.

    Granularity: everything in `*_part_only` is a part; in `*_object_part`, what the `*_part_only` list of the
    same split holds too is a part and the rest are objects (our choice: the records carry no such field).
    Every pixel above 0 is foreground (masks made from summed polygons hold 254). Raises InputError naming
    file, record and field; for a mask of another size than its photo, both sizes.
    """
    path = _list_path(root, stem)
    records = load_records(path)
    parts = _part_keys(root, stem, records, path)
    finder, collector = PhotoFinder(root), Collector(str(path), root, f"refcocom/{stem}", NOT_STATED)
    folders = [folder / "masks" for folder in data_folders(root, FOLDERS)]
    for index, record in enumerate(records):
        who = f"{path}: record {index}"
        photo = finder.path(file_name_of(record, who, "img_name"), who)
        with collector.leaving_out():
            rle = cris.mask_of(folders, cris.segment_of(record, who), photo, who)
            granularity = (
                Granularity.PART if parts is None or _key(record, who) in parts else Granularity.OBJECT
            )
            cris.add_segment(collector, record, granularity, rle, photo, who)
    return collector.records()


def _list_path(root: Path, stem: str) -> Path:
    known = known_stems(root)
    if known and stem not in known:
        raise NotThereError(f"{root}: RefCOCOm has no list {stem!r}; it has {', '.join(known)}")
    return data_file(root, FOLDERS, (f"annotations/{stem}.json", f"annotations/refcocom_{stem}.json"))


def _part_keys(
    root: Path, stem: str, records: Sequence[Mapping[str, Any]], path: Path
) -> frozenset[tuple[str, str]] | None:
    """(photo, segment) of the parts of an `*_object_part` list; None where every record is a part."""
    if not stem.endswith(OBJECT_PART):
        return None
    sibling = stem.removesuffix(OBJECT_PART) + PART_ONLY
    if sibling not in known_stems(root):
        raise InputError(f"{path}: needs {sibling}.json beside it, which lists the records that are parts")
    beside = _list_path(root, sibling)
    parts = frozenset(
        _key(record, f"{beside}: record {index}") for index, record in enumerate(load_records(beside))
    )
    here = frozenset(_key(record, f"{path}: record {index}") for index, record in enumerate(records))
    if parts and not parts & here:
        raise InputError(
            f"{path}: shares no segment with {beside.name}, so nothing shows which records are parts"
        )
    return parts


def _key(record: Mapping[str, Any], who: str) -> tuple[str, str]:
    return file_name_of(record, who, "img_name"), cris.segment_of(record, who)
