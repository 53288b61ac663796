"""RefCOCOm: expressions for parts and objects, as CRIS-like lists and one mask file per segment.

`annotations/<stem>.json` holds {img_name, segment_id, sentences, …}, `masks/<segment_id>.png` the mask. The
folder is spelt RefCOCOm or Refcocom in the wild, sometimes one for the lists and the other for the masks: all
are searched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniresxx import images, masks
from uniresxx.data.readers import coco
from uniresxx.data.readers.pickles import load_records
from uniresxx.errors import InputError
from uniresxx.types import RLE, Granularity, ImageRecord

FOLDERS = ("refcocom", "refcocom_benchmark")
PART_ONLY, OBJECT_PART = "_part_only", "_object_part"


def known_stems(root: Path) -> list[str]:
    """Stems of the annotation lists that are there (`val_part_only`, …): globbed, not assumed."""
    found = {
        item.stem.removeprefix("refcocom_")
        for folder in coco.data_folders(root, FOLDERS)
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
    finder, collector = coco.PhotoFinder(root), coco.Collector(str(path))
    folders = [folder / "masks" for folder in coco.data_folders(root, FOLDERS)]
    for index, record in enumerate(records):
        who = f"{path}: record {index}"
        photo_name, segment = _photo_name(record, who), _segment(record, who)
        photo = finder.path(photo_name)
        rle = _mask(folders, segment, photo, who)
        granularity = Granularity.PART if parts is None or _key(record, who) in parts else Granularity.OBJECT
        source: dict[str, Any] = {"segment_id": segment, "cat": record.get("cat")}
        for place, sentence in enumerate(coco.sentences(record, "idx", who)):
            native = f"{segment}_{place if sentence.native_id is None else sentence.native_id}"
            if not sentence.text:
                collector.leave_out(f"{who}: sentence {native} is blank")
                continue
            expression = coco.target_expression(
                collector.unique(f"refcocom/{stem}/{native}"), sentence, granularity, rle, source
            )
            collector.add(_image_id(photo_name), photo, (rle["size"][0], rle["size"][1]), expression)
    return collector.records()


def _list_path(root: Path, stem: str) -> Path:
    known = known_stems(root)
    if known and stem not in known:
        raise InputError(f"{root}: RefCOCOm has no list {stem!r}; it has {', '.join(known)}")
    return coco.data_file(root, FOLDERS, (f"annotations/{stem}.json", f"annotations/refcocom_{stem}.json"))


def _part_keys(
    root: Path, stem: str, records: Sequence[Mapping[str, Any]], path: Path
) -> frozenset[tuple[str, str]] | None:
    """(photo, segment) of the parts of an `*_object_part` list; None where every record is a part."""
    if not stem.endswith(OBJECT_PART):
        return None
    sibling = stem.removesuffix(OBJECT_PART) + PART_ONLY
    if sibling not in known_stems(root):
        raise InputError(f"{path}: needs {sibling}.json beside it, which says which of its records are parts")
    beside = _list_path(root, sibling)
    parts = frozenset(
        _key(record, f"{beside}: record {index}") for index, record in enumerate(load_records(beside))
    )
    here = frozenset(_key(record, f"{path}: record {index}") for index, record in enumerate(records))
    if parts and not parts & here:
        raise InputError(
            f"{path}: shares no segment with {beside.name}, so parts and objects cannot be told apart"
        )
    return parts


def _key(record: Mapping[str, Any], who: str) -> tuple[str, str]:
    return _photo_name(record, who), _segment(record, who)


def _photo_name(record: Mapping[str, Any], who: str) -> str:
    name = coco.need(record, "img_name", who)
    if not isinstance(name, str) or not name:
        raise InputError(f"{who}: img_name must be a file name, not {name!r}")
    return name


def _segment(record: Mapping[str, Any], who: str) -> str:
    """segment_id as text, whether the file holds a number or text."""
    value = coco.need(record, "segment_id", who)
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"[\w-]+", str(value)):
        raise InputError(f"{who}: segment_id must be a number or a plain name, not {value!r}")
    return str(value)


def _mask(folders: Sequence[Path], segment: str, photo: Path, who: str) -> RLE:
    """The mask of a segment, checked against the size of its photo where the photo is there."""
    for folder in folders:
        path = folder / f"{segment}.png"
        if path.is_file():
            break
    else:
        raise InputError(f"{who}: no mask {segment}.png in {' or '.join(str(item) for item in folders)}")
    mask_yx = images.read_mask(path)
    size = images.photo_size(photo)
    if size is not None and size != mask_yx.shape:
        raise InputError(
            f"{path}: the mask is {mask_yx.shape[0]} x {mask_yx.shape[1]} (height x width), "
            f"but its photo {photo.name} is {size[0]} x {size[1]}"
        )
    rle = masks.encode(mask_yx)
    if masks.area(rle) == 0:
        raise InputError(f"{path}: the mask covers no pixel, so it can be no target of {who}")
    return rle


def _image_id(photo_name: str) -> str:
    """The COCO image id in a file name, as in the other sets, or the bare name where there is none."""
    bare = Path(photo_name).stem
    number = re.search(r"(?:^|_)(\d{12})$", bare)
    return str(int(number.group(1))) if number else bare
