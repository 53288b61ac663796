"""RES lists of the PSALM family (PSALM, HiMTok, ALTo): one json per split, annotations copied into each record.

`<set>/<split>_psalm.json` (as PSALM's build_RefCOCO.py and build_gRefCOCO.py write it) or
`<set>/<set>_<split>.json`: a list of {image_info {file_name, height, width, id}, anns [COCO annotation],
instruction [sentence]}. Its field `image` is no file in gRefCOCO (it ends on `_<n>`): `image_info` names the
photo.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniresxx.data.readers.collector import Collector, Photo, Target
from uniresxx.data.readers.fields import file_name_of, need, photo_id, sentences, shown, size_of, whole
from uniresxx.data.readers.files import load_records
from uniresxx.data.readers.folders import PhotoFinder, data_file
from uniresxx.data.readers.instances import overlap_source, photo_licence, truth
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import Granularity, ImageRecord

# data set -> its folder names; RefCOCOg is converted from the umd split only
SETS = {
    "refcoco": ("refcoco",),
    "refcoco+": ("refcoco+", "refcocoplus"),
    "refcocog_umd": ("refcocog", "refcocog_umd"),
    "grefcoco": ("grefcoco", "grefs"),
}


def read_psalm(root: Path, split: str, dataset: str = "refcoco") -> list[ImageRecord]:
    """Records of one split, ids `psalm_<set>/<split>/<sent_id>`, or `<record>_<place>` where there is no sent_id.

    In gRefCOCO no annotation, or only annotations with an empty segmentation, means no target, and several
    are united; crowd regions are no targets, and a record that has only those is left out and reported, as is
    one without a sentence. In the other sets every record has exactly one annotation. Raises InputError
    naming file, record and field.
    """
    names = SETS[dataset]
    files = (f"{split}_psalm.json", *(f"{name}_{split}.json" for name in names))
    path = data_file(root, names, files)
    finder, collector = PhotoFinder(root), Collector(str(path), root, f"psalm_{dataset}/{split}")
    for index, record in enumerate(load_records(path)):
        who = f"{path}: record {index}"
        info = need(record, "image_info", who)
        if not isinstance(info, dict):
            raise InputError(f"{who}: image_info must be an object, not {shown(info)}")
        file_name, size = file_name_of(info, f"{who}: image_info"), size_of(info, f"{who}: image_info")
        image_id = str(whole(info["id"], "id", who)) if "id" in info else photo_id(file_name)
        listed = list(sentences({"sentences": need(record, "instruction", who)}, "sent_id", who))
        with collector.leaving_out():
            target = _target(record, size, dataset == "grefcoco", who)
            if target is None or not listed:
                why = "has no sentence" if target else "its only targets are crowd regions"
                collector.leave_out(f"{who}: {why}")
                continue
            asked = [
                (f"{index}_{place}" if item.native_id is None else item.native_id, item)
                for place, item in enumerate(listed)
            ]
            photo = Photo(image_id, finder.path(file_name, who), size, photo_licence(info))
            collector.add(who, photo, target, asked)
    return collector.records()


def _target(record: Mapping[str, Any], size: tuple[int, int], general: bool, who: str) -> Target | None:
    """The target of a record, its annotation ids in its source; None where every target is a crowd region."""
    rows = need(record, "anns", who)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{who}: anns must be a list of annotations, not {shown(rows)}")
    if not general and len(rows) != 1:
        raise InputError(f"{who}: has {len(rows)} annotations; only gRefCOCO may have any number but one")
    if general and all(need(row, "segmentation", who) in ([], [[]]) for row in rows):
        return Target(Granularity.NONE, None, {"ann_id": []})
    # an annotation that comes twice is one target, as in the gRefCOCO reader
    single = {
        shown(row.get("id", f"at {place}")): row
        for place, row in enumerate(rows)
        if not row.get("iscrowd", 0)
    }
    if not single:
        return None
    found = [truth(row, size, f"{who}: annotation {name}", who) for name, row in single.items()]
    granularity = Granularity.OBJECT if len(found) == 1 else Granularity.MULTI
    source: dict[str, Any] = {"ann_id": [row.get("id") for row in single.values()]}
    source |= overlap_source(list(single.values()), found, size)
    return Target(granularity, masks.union(found, size), source, tuple(found))
